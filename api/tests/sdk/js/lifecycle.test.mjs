// Create, find, connect to, time out and kill sandboxes.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AuthenticationError, Sandbox, SandboxError, SandboxNotFoundError, TimeoutError } from 'e2b'
import { create, eventually, patient, rejection, run, withFresh } from './support.mjs'

async function listed(query) {
  const found = []
  const pages = Sandbox.list(query ? { query } : undefined)
  while (pages.hasNext) found.push(...(await pages.nextItems()))
  return found.map((each) => each.sandboxId)
}

test('a sandbox lives and dies', async () => {
  const box = await create({ metadata: { who: 'js' }, timeoutMs: 600_000 })
  try {
    assert.match(box.sandboxId, /^[a-z0-9]+$/)
    assert.equal(await box.isRunning(), true)
    const info = await box.getInfo()
    assert.equal(info.sandboxId, box.sandboxId)
    assert.deepEqual(info.metadata, { who: 'js' })
    assert.equal(info.state, 'running')
    const life = info.endAt - info.startedAt
    assert.ok(life > 590_000 && life < 610_000, `lives ${life} ms`)
    assert.ok((await listed()).includes(box.sandboxId))
    assert.deepEqual(await listed({ metadata: { who: 'js' } }), [box.sandboxId])
    assert.deepEqual(await listed({ metadata: { who: 'py' } }), [])
  } finally {
    assert.equal(await box.kill(), true)
  }
  assert.equal(await box.kill(), false)
  assert.equal(await box.isRunning(), false)
  assert.ok((await rejection(box.getInfo())) instanceof SandboxNotFoundError)
  assert.ok(!(await listed()).includes(box.sandboxId))
})

test('connect reaches the same sandbox', () =>
  withFresh(async (box) => {
    await box.files.write('/tmp/mark', 'here')
    const same = await Sandbox.connect(box.sandboxId, { timeoutMs: 60_000 })
    assert.equal((await run(same, 'cat /tmp/mark')).stdout, 'here')
  }))

test('set timeout shortens, and the timeout kills', () =>
  withFresh(async (box) => {
    const waiting = await box.commands.run('sleep 3600', { background: true, timeoutMs: 0 })
    const ended = rejection(waiting.wait())
    await box.setTimeout(1000)
    await eventually('it is over', 20, async () => !(await box.isRunning()))
    assert.ok((await rejection(box.getInfo())) instanceof SandboxNotFoundError)
    assert.ok((await ended) instanceof Error)
  }))

test('commands after the end say so', async () => {
  const box = await create()
  await box.kill()
  assert.ok((await rejection(box.commands.run('true'))) instanceof SandboxNotFoundError)
  const unread = await rejection(box.files.read('/etc/hostname'))
  assert.ok(unread instanceof TimeoutError)
  assert.match(unread.message, /was not found/)
})

test('a command hears of the kill promptly', async () => {
  const box = await create()
  const handle = await box.commands.run('sleep 3600', { background: true, timeoutMs: 0 })
  const ended = rejection(handle.wait())
  const start = Date.now()
  await box.kill()
  const error = await ended
  assert.ok(Date.now() - start < patient(6), `${Date.now() - start} ms`)
  assert.ok(error instanceof TimeoutError, String(error))
  assert.match(error.message, /killed or reached its end of life/)
})

test('wrong keys and unknown names are refused', async () => {
  const apiKey = `e2b_${'f'.repeat(40)}`
  assert.ok((await rejection(Sandbox.create({ apiKey }))) instanceof AuthenticationError)
  const unknown = await rejection(Sandbox.create('no-such-template'))
  assert.ok(unknown instanceof SandboxError)
  assert.match(unknown.message, /404/)
  assert.ok((await rejection(Sandbox.connect('inosuchsandbox00000'))) instanceof SandboxNotFoundError)
  assert.equal(await Sandbox.kill('inosuchsandbox00000'), false)
})
