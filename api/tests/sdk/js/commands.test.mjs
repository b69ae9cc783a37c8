// Run commands: output, status, input, signals, users, environment, limits.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import {
  AuthenticationError,
  CommandExitError,
  InvalidArgumentError,
  NotFoundError,
  TimeoutError,
} from 'e2b'
import { atLeastMinute, box, eventually, patient, rejection, run, vmOnly } from './support.mjs'

test('output and status', async () => {
  const done = await run(await box(), 'echo out; echo err >&2')
  assert.deepEqual([done.stdout, done.stderr, done.exitCode], ['out\n', 'err\n', 0])
})

test('a failing command throws', async () => {
  const failed = await rejection(run(await box(), 'echo before; echo why >&2; exit 3'))
  assert.ok(failed instanceof CommandExitError)
  assert.deepEqual([failed.exitCode, failed.stdout, failed.stderr], [3, 'before\n', 'why\n'])
  assert.equal(failed.error, 'exit status 3')
})

test('output streams in order', async () => {
  const heard = []
  const hear = (text) => heard.push([Date.now(), text])
  const script = 'for i in 1 2 3; do echo out$i; sleep 0.3; echo err$i >&2; sleep 0.3; done'
  await run(await box(), script, { onStdout: hear, onStderr: hear })
  assert.equal(heard.map(([, text]) => text).join(''), 'out1\nerr1\nout2\nerr2\nout3\nerr3\n')
  assert.ok(Date.now() - heard[0][0] > 1200, 'the first line arrived while the command ran')
})

test('background, connect and wait', async () => {
  const sandbox = await box()
  const first = await sandbox.commands.run('read line; echo got $line', { background: true, stdin: true })
  const second = await sandbox.commands.connect(first.pid)
  await sandbox.commands.sendStdin(first.pid, 'this\n')
  for (const handle of [first, second]) assert.equal((await handle.wait()).stdout, 'got this\n')
  assert.ok((await rejection(sandbox.commands.connect(4_000_000))) instanceof NotFoundError)
})

test('stdin and its end', async () => {
  const handle = await (await box()).commands.run('cat; echo end', { background: true, stdin: true })
  for (const line of ['one\n', 'zwei\n', 'três\n']) await handle.sendStdin(line)
  await handle.closeStdin()
  assert.equal((await handle.wait()).stdout, 'one\nzwei\ntrês\nend\n')
})

test('kill and list', async () => {
  const sandbox = await box()
  const handle = await sandbox.commands.run('sleep 3601', { background: true, timeoutMs: 0, cwd: '/tmp' })
  const mine = (await sandbox.commands.list()).find((each) => each.pid === handle.pid)
  assert.deepEqual([mine.cmd, mine.args, mine.cwd], ['/bin/bash', ['-l', '-c', 'sleep 3601'], '/tmp'])
  const ended = rejection(handle.wait())
  assert.equal(await handle.kill(), true)
  const killed = await ended
  assert.ok(killed instanceof CommandExitError)
  assert.deepEqual([killed.exitCode, killed.error], [-1, 'signal: killed'])
  await eventually('it is gone', 10, async () => !(await sandbox.commands.kill(handle.pid)))
})

test('a timeout throws and kills', async () => {
  const sandbox = await box()
  const limit = Math.max(1000, patient(0.5))
  const handle = await sandbox.commands.run('exec sleep 3602', { background: true, timeoutMs: limit })
  assert.ok((await rejection(handle.wait())) instanceof TimeoutError)
  const alive = `test -e /proc/${handle.pid} && echo yes || echo no`
  await eventually('the process dies too', 10, async () => (await run(sandbox, alive)).stdout === 'no\n')
})

test('users, folders and environment', async () => {
  const sandbox = await box()
  assert.equal((await run(sandbox, 'id -un; pwd')).stdout, 'user\n/home/user\n')
  assert.equal((await run(sandbox, 'id -un; pwd', { user: 'root', cwd: '/' })).stdout, 'root\n/\n')
  const echo = 'echo "$LAYER|$ONLY_SANDBOX|$MINE|$E2B_SANDBOX_ID"'
  const got = (await run(sandbox, echo, { envs: { LAYER: 'call', MINE: 'é b' } })).stdout
  assert.equal(got, `call|yes|é b|${sandbox.sandboxId}\n`)
  assert.ok((await rejection(run(sandbox, 'true', { user: 'nobody-of-that-name' }))) instanceof AuthenticationError)
  assert.ok((await rejection(run(sandbox, 'true', { cwd: '/no/such/folder' }))) instanceof InvalidArgumentError)
})

test('the user may become root', vmOnly, async () => {
  assert.equal((await run(await box(), 'sudo -n id -un')).stdout, 'root\n')
})

test('ten megabytes of output', async () => {
  const wanted = createHash('sha256')
  for (let number = 1; number <= 1_500_000; number += 1) wanted.update(`${number}\n`)
  const done = await run(await box(), 'seq 1 1500000', { timeoutMs: atLeastMinute(60) })
  assert.equal(createHash('sha256').update(done.stdout).digest('hex'), wanted.digest('hex'))
})

test('many commands at once', async () => {
  const sandbox = await box()
  const numbers = [...Array(16).keys()]
  const done = await Promise.all(
    numbers.map((n) => run(sandbox, `sleep 0.2; echo ${n}`, { timeoutMs: atLeastMinute(60) })),
  )
  assert.deepEqual(done.map((each) => each.stdout), numbers.map((n) => `${n}\n`))
})
