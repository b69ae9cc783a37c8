// Pause and connect, snapshots, forks: the moments of a sandbox, with a program that runs on.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Sandbox } from 'e2b'
import { atLeastMinute, create, eventually, patient, run, vmOnly } from './support.mjs'

const slow = { requestTimeoutMs: atLeastMinute(120) }

/** Starts a program that counts, and keeps a token in memory alone. */
async function counter(box) {
  const program = 'token=$RANDOM$RANDOM; n=0; while :; do n=$((n+1)); echo $n $token > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.2; done'
  await box.commands.run(program, { background: true, timeoutMs: 0 })
  await eventually('it counts', 20, async () => (await run(box, 'cat /tmp/n || true')).stdout)
}

async function count(box) {
  const [n, token] = (await run(box, 'cat /tmp/n')).stdout.trim().split(' ')
  return { n: Number(n), token }
}

/** The box counts on from `before`, in the same program. */
async function countsOn(box, before) {
  const first = await count(box)
  assert.equal(first.token, before.token)
  assert.ok(first.n >= before.n)
  await eventually('it counts on', 20, async () => (await count(box)).n > first.n)
}

test('what is paused goes on when it is connected to', vmOnly, async () => {
  const box = await create({ metadata: { test: 'js-pause' } })
  try {
    await counter(box)
    await box.files.write('/home/user/kept', 'kept')
    const before = await count(box)
    assert.equal(await box.pause(slow), true)
    assert.equal((await box.getInfo()).state, 'paused')
    const again = await Sandbox.connect(box.sandboxId, { timeoutMs: patient(300), ...slow })
    assert.equal(again.sandboxId, box.sandboxId)
    await countsOn(again, before)
    assert.equal(await again.files.read('/home/user/kept'), 'kept')
  } finally {
    await box.kill()
  }
})

test('a snapshot is a template', vmOnly, async () => {
  const box = await create()
  const made = []
  let snapshotId
  try {
    await counter(box)
    const before = await count(box)
    ;({ snapshotId } = await box.createSnapshot(slow))
    await countsOn(box, before)
    const listed = await Sandbox.listSnapshots().nextItems()
    assert.ok(listed.some((each) => each.snapshotId === snapshotId))
    for (let n = 0; n < 2; n++) made.push(await Sandbox.create(snapshotId, { timeoutMs: patient(300), ...slow }))
    for (const each of made) await countsOn(each, before)
  } finally {
    for (const each of [box, ...made]) await each.kill()
    if (snapshotId) {
      assert.equal(await Sandbox.deleteSnapshot(snapshotId), true)
      assert.equal(await Sandbox.deleteSnapshot(snapshotId), false)
    }
  }
})

test('children go on as somebody else', vmOnly, async () => {
  const box = await create()
  let children = []
  try {
    await counter(box)
    const before = await count(box)
    children = await box.fork({ count: 3, timeoutMs: patient(120), ...slow })
    assert.deepEqual(children.filter((each) => each instanceof Error), [])
    const told = new Set()
    for (const child of children) {
      await countsOn(child, before)
      const words = (await run(child, 'hostname; od -An -tx1 -N16 /dev/urandom')).stdout.split('\n')
      assert.equal(words[0], child.sandboxId)
      for (const word of words.slice(0, 2)) told.add(word)
    }
    assert.equal(told.size, 6)
    await countsOn(box, before)
  } finally {
    for (const each of [box, ...children]) if (!(each instanceof Error)) await each.kill()
  }
})
