// What the test files share: patience, one sandbox for the tests that leave it as it was.
// Environment as in ../python/support.py.

import { after } from 'node:test'
import { Sandbox } from 'e2b'

export const SCALE = Number(process.env.HATCHERY_TIME_SCALE ?? '1')
export const BIG_MIB = Number(process.env.HATCHERY_BIG_MIB ?? '100')
export const NATIVE = process.env.HATCHERY_NATIVE === '1'
export const vmOnly = NATIVE ? { skip: 'the agent runs natively: no virtual machine to try this on' } : {}

/** A limit in milliseconds for something that must happen, stretched for slow hosts. */
export const patient = (seconds) => seconds * 1000 * SCALE
export const atLeastMinute = (seconds) => Math.max(60_000, patient(seconds))

export function create(options = {}) {
  return Sandbox.create({
    timeoutMs: patient(300),
    requestTimeoutMs: atLeastMinute(30),
    ...options,
  })
}

export function run(box, command, options = {}) {
  return box.commands.run(command, { timeoutMs: atLeastMinute(30), ...options })
}

/** Runs `body` with a sandbox of its own. */
export async function withFresh(body, options) {
  const box = await create(options)
  try {
    return await body(box)
  } finally {
    await box.kill()
  }
}

let shared
/** The sandbox that one file's tests share. */
export function box() {
  shared ??= create({ timeoutMs: 3_600_000, envs: { LAYER: 'sandbox', ONLY_SANDBOX: 'yes' } })
  return shared
}
after(async () => shared && (await shared).kill())

/** An empty folder in the shared sandbox. */
export async function folder(name) {
  const path = `/tmp/js-${name}`
  const sandbox = await box()
  await sandbox.files.remove(path)
  await sandbox.files.makeDir(path)
  return [sandbox, path]
}

export async function eventually(what, seconds, check) {
  const deadline = Date.now() + patient(seconds)
  for (;;) {
    const got = await check()
    if (got) return got
    if (Date.now() > deadline) throw new Error(`${what}: not within ${patient(seconds)} ms`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

/** What `promise` is rejected with; fails if it is not. */
export async function rejection(promise) {
  let value
  try {
    value = await promise
  } catch (error) {
    return error
  }
  throw new Error(`expected a rejection, got ${JSON.stringify(value)}`)
}
