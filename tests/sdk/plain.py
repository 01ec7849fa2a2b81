"""Publishes and receives on plain topics by paho-mqtt 1 or 2.

usage: plain.py TRANSPORT PORT CA VERSION COUNT
Prints one JSON line: what arrived, each as topic, payload, QoS and RETAIN.
"""

import json
import sys
import threading

import paho.mqtt.client as mqtt

LIMIT = 30


def client(name, transport, ca, version):
    protocol = mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311
    kind = "websockets" if transport in ("ws", "wss") else "tcp"
    options = {"client_id": name, "protocol": protocol, "transport": kind}
    if hasattr(mqtt, "CallbackAPIVersion"):
        options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
    made = mqtt.Client(**options)
    if transport in ("tls", "wss"):
        made.tls_set(ca)
    return made


def connect(name, transport, port, ca, version):
    made = client(name, transport, ca, version)
    is_in = threading.Event()
    made.on_connect = lambda *_: is_in.set()
    made.connect("localhost", int(port))
    made.loop_start()
    assert is_in.wait(LIMIT), f"{name} is not let in"
    return made


def main():
    transport, port, ca, version, count = sys.argv[1:]
    arrived, done, subscribed = [], threading.Event(), threading.Event()

    def on_message(_client, _data, message):
        payload = message.payload.decode()
        arrived.append([message.topic, payload, message.qos, bool(message.retain)])
        if len(arrived) == 3 * int(count) + 1:
            done.set()

    sender = connect("sender", transport, port, ca, version)
    retained = sender.publish("in/retained", "kept", 2, retain=True)
    retained.wait_for_publish(LIMIT)
    receiver = connect("receiver", transport, port, ca, version)
    receiver.on_message = on_message
    receiver.on_subscribe = lambda *_: subscribed.set()
    receiver.subscribe("in/#", qos=2)
    assert subscribed.wait(LIMIT), "no SUBACK"
    for number in range(int(count)):
        for qos in (0, 1, 2):
            sent = sender.publish(f"in/{qos}", f"{number} ä", qos)
            sent.wait_for_publish(LIMIT)
            assert sent.is_published(), f"{number} with QoS {qos} is not acknowledged"
    assert done.wait(LIMIT), f"{len(arrived)} arrived"
    for one in (sender, receiver):
        one.disconnect()
        one.loop_stop()
    print(json.dumps(arrived))


main()
