"""Two modules that speak MQTT 5 by paho-mqtt, over TLS: one sends, the other receives.

usage: mqtt5.py NAME ADDRESS CA COUNT   (with SENDER and RECEIVER: their connection strings).
Prints one JSON line: the reason codes of the acknowledgements, and what arrived.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from urllib.parse import quote

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from redirect import redirect

LIMIT = 30


def fields(connection):
    return dict(part.split("=", 1) for part in connection.split(";"))


def token(connection):
    """A shared access signature that is good for an hour."""
    resource = "{HostName}/devices/{DeviceId}/modules/{ModuleId}".format(**connection)
    resource = quote(resource, safe="")
    expiry = int(time.time()) + 3600
    key = base64.b64decode(connection["SharedAccessKey"])
    signature = hmac.new(key, f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    signature = quote(base64.b64encode(signature), safe="")
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"


def connect(name, ca, text):
    """A client that is in, and its identity."""
    connection = fields(text)
    identity = "{DeviceId}/{ModuleId}".format(**connection)
    client = mqtt.Client(identity, protocol=mqtt.MQTTv5)
    user = f"{connection['HostName']}/{identity}/?api-version=2021-04-12"
    client.username_pw_set(user, token(connection))
    client.tls_set(ca)
    is_in = threading.Event()
    client.on_connect = lambda *_: is_in.set()
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect(name, 8883, clean_start=False, properties=properties)
    client.loop_start()
    assert is_in.wait(LIMIT), f"{identity} is not let in"
    topic = "devices/{DeviceId}/modules/{ModuleId}".format(**connection)
    return client, topic


def message(number):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    properties.CorrelationData = f"c{number}".encode()
    properties.UserProperty = [("$.on", "out"), ("größe & co", f"{number}/ä=é")]
    return properties


def main():
    name, address, ca, count = sys.argv[1:]
    redirect(name, address)
    receiver, topic = connect(name, ca, os.environ["RECEIVER"])
    arrived, done, subscribed = [], threading.Event(), threading.Event()

    def on_message(_client, _data, message):
        arrived.append([message.topic.rsplit("/", 1)[1], message.payload.decode()])
        if len(arrived) == int(count):
            done.set()

    receiver.on_message = on_message
    receiver.on_subscribe = lambda *_: subscribed.set()
    receiver.subscribe(f"{topic}/inputs/#", qos=1)
    assert subscribed.wait(LIMIT), "no SUBACK"

    sender, topic = connect(name, ca, os.environ["SENDER"])
    for number in range(int(count)):
        body = json.dumps({"number": number})
        sent = sender.publish(f"{topic}/messages/events/", body, 1, properties=message(number))
        sent.wait_for_publish(LIMIT)
        assert sent.is_published(), f"{number} is not acknowledged"
    assert done.wait(LIMIT), f"{len(arrived)} arrived"
    for client in (sender, receiver):
        client.disconnect()
        client.loop_stop()
    print(json.dumps(arrived))


main()
