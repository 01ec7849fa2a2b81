// Publishes and receives on plain topics by MQTT.js.
//
// usage: plain.js TRANSPORT PORT CA VERSION COUNT
// Prints one JSON line: what arrived, each as topic, payload, QoS and RETAIN.
'use strict'

const fs = require('fs')
const mqtt = require('mqtt')

const [transport, port, ca, version, count] = process.argv.slice(2)

function connect(clientId) {
  const scheme = { tcp: 'mqtt', tls: 'mqtts', ws: 'ws', wss: 'wss' }[transport]
  const client = mqtt.connect(`${scheme}://localhost:${port}`, {
    clientId,
    protocolVersion: version === '5' ? 5 : 4,
    ca: fs.readFileSync(ca),
    reconnectPeriod: 0,
  })
  return new Promise((resolve, reject) => {
    client.on('connect', () => resolve(client))
    client.on('error', reject)
  })
}

const publish = (client, topic, payload, options) =>
  new Promise((resolve, reject) =>
    client.publish(topic, payload, options, (error) => (error ? reject(error) : resolve()))
  )

async function main() {
  const arrived = []
  const sender = await connect('sender')
  await publish(sender, 'in/retained', 'kept', { qos: 2, retain: true })
  const receiver = await connect('receiver')
  const done = new Promise((resolve) =>
    receiver.on('message', (topic, payload, packet) => {
      arrived.push([topic, payload.toString(), packet.qos, packet.retain])
      if (arrived.length === 3 * Number(count) + 1) resolve()
    })
  )
  await new Promise((resolve, reject) =>
    receiver.subscribe('in/#', { qos: 2 }, (error) => (error ? reject(error) : resolve()))
  )
  for (let number = 0; number < Number(count); number++) {
    for (const qos of [0, 1, 2]) {
      await publish(sender, `in/${qos}`, `${number} ä`, { qos })
    }
  }
  await done
  sender.end()
  receiver.end()
  console.log(JSON.stringify(arrived))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
