// Programs that listen in a sandbox, reached from outside by the routing headers.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually, patient, withFresh } from './support.mjs'

const URL = process.env.E2B_API_URL ?? 'http://127.0.0.1:3000'

/** A port that nobody else has: natively all sandboxes share this machine's. */
const ownPort = () => 20_000 + Math.floor(Math.random() * 10_000)

// Answers with what it is asked, and by and by with events.
const SERVER = `
const http = require('http')
http.createServer((request, response) => {
  if (request.url === '/events') {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    let n = 0
    const timer = setInterval(() => {
      response.write('data: ' + n++ + '\\n\\n')
      if (n === 3) { clearInterval(timer); response.end() }
    }, 200)
    return
  }
  response.writeHead(200, { 'x-method': request.method })
  request.pipe(response)
}).listen(Number(process.argv[2]), '127.0.0.1')
`

test('a Node server in a sandbox takes bodies and sends events', () =>
  withFresh(async (box) => {
    const port = ownPort()
    const headers = { 'E2b-Sandbox-Id': box.sandboxId, 'E2b-Sandbox-Port': String(port) }
    const ask = (path, options = {}) => fetch(URL + path, { headers, ...options })
    const closed = await ask('/')
    assert.equal(closed.status, 502)
    assert.match((await closed.json()).message, /port is not open/)
    assert.ok(box.getHost(port).startsWith(`${port}-${box.sandboxId}.`))

    await box.files.write('/tmp/server.cjs', SERVER)
    await box.commands.run(`exec node /tmp/server.cjs ${port}`, { background: true, timeoutMs: 0 })
    await eventually('the server listens', 60, async () => {
      // Who asks all the time takes a slow guest's processor from the server that is to start.
      await new Promise((resolve) => setTimeout(resolve, patient(0.2)))
      return (await ask('/')).status === 200
    })
    const body = 'x'.repeat(300_000)
    const echoed = await ask('/', { method: 'POST', body })
    assert.equal(echoed.headers.get('x-method'), 'POST')
    assert.equal(await echoed.text(), body)
    const events = await ask('/events')
    assert.equal(events.headers.get('content-type'), 'text/event-stream')
    assert.equal(await events.text(), 'data: 0\n\ndata: 1\n\ndata: 2\n\n')
  }))
