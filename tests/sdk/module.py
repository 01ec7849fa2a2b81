"""One edge module on the unmodified Python SDK, driven by JSON lines.

Commands come on standard input and are served one after the other; each is answered by
{"event":"answer"} with a "result", or with "error" (the exception's class) and "text".
Received messages, desired properties and changes of the connection are events of their own.

usage: module.py NAME ADDRESS   (with the SDK's own variables EdgeHubConnectionString and
EdgeModuleCACertificateFile): NAME resolves to ADDRESS inside this process. The SDK's port is a
constant, so a test hub is told from another by its loopback address; the name itself, and with it
the verification of the server's certificate, stays.
"""

import asyncio
import base64
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from azure.iot.device import Message
from azure.iot.device.aio import IoTHubModuleClient

from redirect import redirect

SYSTEM_PROPERTIES = (
    "message_id",
    "correlation_id",
    "user_id",
    "content_type",
    "content_encoding",
)


output = threading.Lock()


def say(event, **fields):
    with output:
        print(json.dumps({"event": event, **fields}), flush=True)


def outgoing(fields, output_name):
    message = Message(base64.b64decode(fields["body"]), output_name=output_name)
    for name in SYSTEM_PROPERTIES:
        setattr(message, name, fields.get(name))
    message.custom_properties = fields.get("properties", {})
    return message


# The handlers are coroutines, which the SDK starts in order; functions it gives to four threads.


async def on_message(message):
    system = {name: getattr(message, name) for name in SYSTEM_PROPERTIES}
    say(
        "message",
        input=message.input_name,
        body=base64.b64encode(message.data).decode(),
        properties=message.custom_properties,
        **{name: value for name, value in system.items() if value is not None},
    )


async def on_desired(patch):
    say("desired", patch=patch)


class Module:
    def __init__(self):
        # Once the first attempt to reconnect has failed, try again each second, not every ten.
        self.client = IoTHubModuleClient.create_from_edge_environment(connection_retry_interval=1)
        self.client.on_connection_state_change = self.on_connection

    async def on_connection(self):
        say("connection", connected=self.client.connected)

    async def connect(self):
        await self.client.connect()

    async def listen(self):
        # Comes back when the subscription is acknowledged.
        self.client.on_message_received = on_message

    async def watch(self):
        self.client.on_twin_desired_properties_patch_received = on_desired

    async def send(self, output, messages):
        sends = [self.client.send_message(outgoing(message, output)) for message in messages]
        await asyncio.gather(*sends)

    async def get_twin(self):
        return await self.client.get_twin()

    async def report(self, patch):
        await self.client.patch_twin_reported_properties(patch)


async def serve():
    loop = asyncio.get_running_loop()
    # The SDK makes each call in the loop's default executor: one thread keeps calls in order.
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    commands = ThreadPoolExecutor(max_workers=1)
    module = Module()
    while line := await loop.run_in_executor(commands, sys.stdin.readline):
        command = json.loads(line)
        try:
            result = await getattr(module, command.pop("cmd"))(**command)
            say("answer", result=result)
        except Exception as error:  # whatever the SDK raises is an answer
            text = f"{error!r} from {error.__cause__!r}"
            say("answer", error=type(error).__name__, text=text)
    os._exit(0)  # the harness has gone: the SDK's threads must not keep the process


redirect(*sys.argv[1:3])
asyncio.run(serve())
