import { createHash, randomFillSync } from 'node:crypto'
import { CommandExitError, Sandbox, SandboxNotFoundError, TimeoutError } from 'e2b'

const sandbox = await Sandbox.create()

// Run a command; stream the output of another while it runs.
process.stdout.write((await sandbox.commands.run('echo Hello from $(uname -sr)')).stdout)
await sandbox.commands.run('for i in 1 2 3; do echo line $i; sleep 0.2; done', {
  onStdout: (text) => process.stdout.write(`streamed: ${text}`),
})

// Pass standard input.
const cat = await sandbox.commands.run('tr a-z A-Z', { background: true, stdin: true })
await cat.sendStdin('shouted\n')
await cat.closeStdin()
process.stdout.write((await cat.wait()).stdout)

// Upload and download 100 MiB.
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')
const data = randomFillSync(new Uint8Array(100 << 20))
await sandbox.files.write('data.bin', data.buffer, { requestTimeoutMs: 600_000 })
const copy = await sandbox.files.read('data.bin', { format: 'bytes', requestTimeoutMs: 600_000 })
if (sha256(copy) !== sha256(data)) throw new Error('the checksums differ')
console.log('100 MiB there and back, sha256', sha256(data))

// A failing command, a command over its time, a sandbox that is gone.
const failed = await sandbox.commands.run('echo oh no >&2; exit 3').catch((error) => error)
if (!(failed instanceof CommandExitError)) throw failed
process.stdout.write(`exit code ${failed.exitCode} stderr ${failed.stderr}`)
const late = await sandbox.commands.run('sleep 60', { timeoutMs: 2000 }).catch((error) => error)
if (!(late instanceof TimeoutError)) throw late
console.log('timed out, as asked')
await sandbox.kill()
const gone = await sandbox.commands.run('true').catch((error) => error)
if (!(gone instanceof SandboxNotFoundError)) throw gone
console.log('killed:', gone.name)
