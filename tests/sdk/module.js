'use strict';

// One edge module on the unmodified Node SDK, driven by JSON lines: the same program, commands and
// events as module.py, which describes them.
//
// usage: node module.js NAME ADDRESS

const dns = require('dns');
const fs = require('fs');
const readline = require('readline');

// NAME resolves to ADDRESS inside this process, and everything else as usual.
const [name, address] = process.argv.slice(2);
const lookup = dns.lookup;
dns.lookup = (host, ...rest) => lookup(host === name ? address : host, ...rest);

const { Message, ModuleClient } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');

const SYSTEM_PROPERTIES = {
  message_id: 'messageId',
  correlation_id: 'correlationId',
  user_id: 'userId',
  content_type: 'contentType',
  content_encoding: 'contentEncoding',
};

function say(event, fields) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + '\n');
}

function outgoing(fields) {
  const message = new Message(Buffer.from(fields.body, 'base64'));
  for (const [key, property] of Object.entries(SYSTEM_PROPERTIES)) {
    if (key in fields) message[property] = fields[key];
  }
  for (const [key, value] of Object.entries(fields.properties || {})) {
    message.properties.add(key, value);
  }
  return message;
}

function incoming(input, message) {
  const fields = { input, body: message.data.toString('base64'), properties: {} };
  for (const [key, property] of Object.entries(SYSTEM_PROPERTIES)) {
    if (message[property]) fields[key] = message[property];
  }
  for (const { key, value } of message.properties.propertyList) fields.properties[key] = value;
  return fields;
}

const client = ModuleClient.fromConnectionString(process.env.EdgeHubConnectionString, Mqtt);
client.on('connect', () => say('connection', { connected: true }));
client.on('disconnect', () => say('connection', { connected: false }));
client.on('error', (error) => say('error', { text: String(error) }));

const commands = {
  async connect() {
    await client.open();
  },

  async listen() {
    client.on('inputMessage', (input, message) => say('message', incoming(input, message)));
  },

  async watch() {
    const twin = await client.getTwin();
    twin.on('properties.desired', (patch) => say('desired', { patch }));
  },

  // All at once: the SDK publishes in the order of the calls.
  async send({ output, messages }) {
    await Promise.all(messages.map((fields) => client.sendOutputEvent(output, outgoing(fields))));
  },

  async get_twin() {
    const { desired, reported } = (await client.getTwin()).properties;
    return { desired, reported };
  },

  async report({ patch }) {
    const twin = await client.getTwin();
    await new Promise((resolve, reject) => {
      twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
    });
  },
};

async function serve() {
  const ca = fs.readFileSync(process.env.EdgeModuleCACertificateFile, 'utf8');
  await client.setOptions({ ca });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { cmd, ...parameters } = JSON.parse(line);
    try {
      say('answer', { result: await commands[cmd](parameters) });
    } catch (error) {
      say('answer', { error: error.name, text: String(error) });
    }
  }
}

// The harness has gone: the SDK's timers must not keep the process.
serve().then(() => process.exit(0));
