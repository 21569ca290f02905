// An application with node-postgres: for each way one row after the other.
//   usage: with_pg.js WAY URL [WAY URL ...]    the password is in PGPASSWORD
'use strict'

const { Client } = require('pg')

const PACE = 50

const tell = (way, what, of) => process.stdout.write(`${way}\t${what}\t${String(of).replace(/\s+/g, ' ')}\n`)
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
// Grows from 20 ms to half a second, and is not the same for everybody.
const backoff = (failures) => Math.min(500, 20 * 2 ** Math.min(failures, 5)) * (0.5 + Math.random() / 2)

async function connected(connectionString) {
  const client = new Client({
    connectionString,
    connectionTimeoutMillis: 23000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 5000,
    query_timeout: 10000,
  })
  // Nobody listens: then the end of a connection in which nothing is under way ends the process.
  client.on('error', () => {})
  await client.connect()
  return client
}

async function run(way, url) {
  let client = null
  let failures = 0
  // A number is used once: whether a write that failed was committed is not known.
  for (let n = 1; ; n++) {
    try {
      client ??= await connected(url)
      await client.query('insert into driver_writes (way, n) values ($1, $2)', [way, n])
      tell(way, 'wrote', n)
      failures = 0
      await sleep(PACE)
    } catch (error) {
      tell(way, 'error', `${error.code ?? error.name}: ${error.message}`)
      client?.end().catch(() => {})
      client = null
      await sleep(backoff(failures++))
    }
  }
}

const given = process.argv.slice(2)
for (let at = 0; at < given.length; at += 2) run(given[at], given[at + 1])
process.stdin.resume().on('end', () => process.exit(0))
