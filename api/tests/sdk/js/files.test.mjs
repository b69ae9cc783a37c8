// Files: write, read, list, stat, move, remove; names, sizes, errors.

import assert from 'node:assert/strict'
import { createHash, randomFillSync } from 'node:crypto'
import { test } from 'node:test'
import { AuthenticationError, FileNotFoundError, FileType, InvalidArgumentError } from 'e2b'
import { BIG_MIB, atLeastMinute, folder, rejection, run } from './support.mjs'

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')

test('text, bytes, streams, nothing', async () => {
  const [box, dir] = await folder('kinds')
  const written = await box.files.write(`${dir}/a.txt`, 'grüße\n')
  assert.deepEqual([written.name, written.path], ['a.txt', `${dir}/a.txt`])
  assert.equal(await box.files.read(`${dir}/a.txt`), 'grüße\n')
  const bytes = randomFillSync(new Uint8Array(300_001))
  await box.files.write(`${dir}/b`, bytes.buffer)
  assert.equal(sha256(await box.files.read(`${dir}/b`, { format: 'bytes' })), sha256(bytes))
  await box.files.write(`${dir}/s`, new Blob([bytes]).stream())
  const parts = []
  for await (const part of await box.files.read(`${dir}/s`, { format: 'stream' })) parts.push(part)
  assert.equal(sha256(Buffer.concat(parts)), sha256(bytes))
  await box.files.write(`${dir}/empty`, '')
  assert.equal(await box.files.read(`${dir}/empty`), '')
})

for (const name of ['with space', 'ünïcødé', '雪 ❄.txt', 'per%41cent', 'a+b&c=d;e', '#hash?q']) {
  test(`the name ${name}`, async () => {
    const [box, dir] = await folder('names')
    assert.equal((await box.files.write(`${dir}/${name}`, name)).path, `${dir}/${name}`)
    assert.equal(await box.files.read(`${dir}/${name}`), name)
    assert.deepEqual((await box.files.list(dir)).map((entry) => entry.name), [name])
  })
}

test('many files in one call', async () => {
  const [box, dir] = await folder('many')
  const files = [...Array(300).keys()].map((n) => ({ path: `${dir}/d${n % 7}/file ${n}`, data: `${n}\n` }))
  const written = await box.files.write(files)
  assert.deepEqual(written.map((each) => each.path), files.map((each) => each.path))
  assert.equal((await run(box, `cat ${dir}/d*/* | wc -l`)).stdout.trim(), '300')
})

test('a large file', async () => {
  const [box, dir] = await folder('large')
  const data = randomFillSync(new Uint8Array(BIG_MIB << 20))
  const requestTimeoutMs = Math.max(120_000, atLeastMinute(60))
  await box.files.write(`${dir}/big`, data.buffer, { requestTimeoutMs })
  const inside = await run(box, `sha256sum ${dir}/big`, { timeoutMs: requestTimeoutMs })
  assert.equal(inside.stdout.split(' ')[0], sha256(data))
  const back = await box.files.read(`${dir}/big`, { format: 'bytes', requestTimeoutMs })
  assert.equal(sha256(back), sha256(data))
  await box.files.remove(`${dir}/big`)
})

test('list, info, exists', async () => {
  const [box, dir] = await folder('list')
  await box.files.write(`${dir}/sub/inner.txt`, '12345')
  await box.files.write(`${dir}/file.txt`, '123')
  const types = Object.fromEntries((await box.files.list(dir)).map((entry) => [entry.name, entry.type]))
  assert.deepEqual(types, { sub: FileType.DIR, 'file.txt': FileType.FILE })
  const deep = (await box.files.list(dir, { depth: 2 })).map((entry) => entry.path)
  assert.deepEqual(deep.sort(), [`${dir}/file.txt`, `${dir}/sub`, `${dir}/sub/inner.txt`])
  const info = await box.files.getInfo(`${dir}/file.txt`)
  assert.deepEqual([info.size, info.mode, info.permissions, info.owner], [3, 0o644, '-rw-r--r--', 'user'])
  assert.ok(Math.abs(Date.now() - info.modifiedTime) < 300_000)
  assert.equal(await box.files.exists(`${dir}/sub`), true)
  assert.equal(await box.files.exists(`${dir}/none`), false)
})

test('rename, remove, make folders', async () => {
  const [box, dir] = await folder('move')
  await box.files.write(`${dir}/old`, '1')
  assert.equal((await box.files.rename(`${dir}/old`, `${dir}/new`)).path, `${dir}/new`)
  assert.equal(await box.files.exists(`${dir}/old`), false)
  assert.equal(await box.files.makeDir(`${dir}/one/two`), true)
  assert.equal(await box.files.makeDir(`${dir}/one/two`), false)
  await box.files.remove(`${dir}/one`)
  assert.equal(await box.files.exists(`${dir}/one`), false)
  await box.files.remove(`${dir}/one`)
})

test('what cannot be read or written', async () => {
  const [box, dir] = await folder('errors')
  assert.ok((await rejection(box.files.read(`${dir}/none`))) instanceof FileNotFoundError)
  assert.ok((await rejection(box.files.list(`${dir}/none`))) instanceof FileNotFoundError)
  assert.ok((await rejection(box.files.getInfo(`${dir}/none`))) instanceof FileNotFoundError)
  assert.ok((await rejection(box.files.rename(`${dir}/none`, `${dir}/x`))) instanceof FileNotFoundError)
  assert.ok((await rejection(box.files.read(dir))) instanceof InvalidArgumentError)
  assert.ok((await rejection(box.files.write(dir, 'x'))) instanceof InvalidArgumentError)
  const stranger = { user: 'nobody-of-that-name' }
  assert.ok((await rejection(box.files.write(`${dir}/x`, '1', stranger))) instanceof AuthenticationError)
})
