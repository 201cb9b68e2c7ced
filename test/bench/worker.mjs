// The worker that a team would write by hand: Node, pg and undici.
//
// Takes batches of pending rows with FOR UPDATE SKIP LOCKED, sends one request
// per row with a fixed number in flight, writes the results of a batch with one
// UPDATE and commits.  With --loops several such loops share the requests in
// flight, so that some are on the wire while another batch is being read or
// committed.  It runs until nothing is pending and prints what it did.
//
// The database is named by libpq's environment variables.

import { createHmac, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { deflateSync } from 'node:zlib';
import pg from 'pg';
import { Pool } from 'undici';

const { values: options } = parseArgs({
  options: {
    port: { type: 'string' },
    ca: { type: 'string' },
    key: { type: 'string' },
    sdkappid: { type: 'string', default: '88888888' },
    identifier: { type: 'string', default: 'administrator' },
    'in-flight': { type: 'string', default: '32' },
    batch: { type: 'string', default: '32' },
    loops: { type: 'string', default: '1' },
    warm: { type: 'string', default: '0' }, // pushes before the clock starts
  },
});

for (const name of ['port', 'ca', 'key']) {
  if (options[name] === undefined) {
    console.error(`worker: --${name} is needed`);
    process.exit(2);
  }
}

const inFlight = Number(options['in-flight']);
const batchSize = Number(options.batch);
const loops = Number(options.loops);
const warm = Number(options.warm);
const maxTries = 3;

function makeUserSig(identifier, sdkappid, key, lifetime = 86400) {
  const time = Math.floor(Date.now() / 1000);
  const signed =
    `TLS.identifier:${identifier}\nTLS.sdkappid:${sdkappid}\n` +
    `TLS.time:${time}\nTLS.expire:${lifetime}\n`;
  const ticket = {
    'TLS.ver': '2.0',
    'TLS.identifier': identifier,
    'TLS.sdkappid': sdkappid,
    'TLS.time': time,
    'TLS.expire': lifetime,
    'TLS.sig': createHmac('sha256', key).update(signed).digest('base64'),
  };
  return deflateSync(JSON.stringify(ticket))
    .toString('base64')
    .replaceAll('+', '*')
    .replaceAll('/', '-')
    .replaceAll('=', '_');
}

const usersig = makeUserSig(options.identifier, Number(options.sdkappid), options.key);

// Kept-alive HTTP/1.1 connections: undici's HTTP/2 (allowH2) is experimental and
// reached a third of their rate where it worked.
const api = new Pool(`https://localhost:${options.port}`, {
  connections: inFlight,
  pipelining: 1,
  connect: { ca: readFileSync(options.ca) },
});

// At most inFlight requests are open, whatever loop they belong to.
let free = inFlight;
const waiting = [];
const acquire = () => (free > 0 ? (free--, undefined) : new Promise((go) => waiting.push(go)));
const release = () => (waiting.length > 0 ? waiting.shift()() : free++);

// No MsgRandom is used twice in a run: a counter from a random start.
let msgRandom = randomBytes(4).readUInt32BE();

async function send(row) {
  await acquire();
  try {
    for (let tries = 1; ; tries++) {
      msgRandom = (msgRandom + 1) >>> 0;
      try {
        const { body } = await api.request({
          method: 'POST',
          path:
            `/v4/timpush/batch?usersig=${usersig}&identifier=${options.identifier}` +
            `&sdkappid=${options.sdkappid}&random=${msgRandom}&contenttype=json`,
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({
            From_Account: row.from_account,
            To_Account: row.to_accounts,
            MsgRandom: msgRandom,
            OfflinePushInfo: { PushFlag: 0, Title: row.title, Desc: row.descr },
            ...(row.data_id === null ? {} : { DataId: row.data_id }),
          }),
        });
        return await body.json();
      } catch (error) {
        if (tries >= maxTries) return { ErrorCode: -1, ErrorInfo: String(error), TaskId: '' };
        resent++;
      }
    }
  } finally {
    release();
  }
}

let requests = 0;
let ok = 0;
let resent = 0;
let clock; // the time, and what had been done and used, when it was started

function startClock() {
  clock = { at: performance.now(), cpu: process.cpuUsage(), ok };
}

async function drain(db) {
  for (;;) {
    await db.query('BEGIN');
    const { rows } = await db.query({
      name: 'take',
      text: `SELECT id, from_account, to_accounts, title, descr, data_id
               FROM node_outbox
              WHERE status = 'pending'
              ORDER BY id
              LIMIT $1
                FOR UPDATE SKIP LOCKED`,
      values: [batchSize],
    });
    if (rows.length === 0) {
      await db.query('COMMIT');
      return;
    }

    const answers = await Promise.all(rows.map(send));
    const good = (answer) => answer.ErrorCode === 0 && !answer.ErrorList?.length;
    await db.query({
      name: 'record',
      text: `UPDATE node_outbox o
                SET status = r.status, task_id = r.task_id, error = r.error
               FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[])
                      AS r(id, status, task_id, error)
              WHERE o.id = r.id`,
      values: [
        rows.map((row) => row.id),
        answers.map((answer) => (good(answer) ? 'sent' : 'failed')),
        answers.map((answer) => answer.TaskId),
        answers.map((answer) => (good(answer) ? null : JSON.stringify(answer))),
      ],
    });
    await db.query('COMMIT');
    requests += rows.length;
    ok += answers.filter(good).length;
    if (clock === undefined && ok >= warm) startClock();
  }
}

const databases = await Promise.all(
  Array.from({ length: loops }, async () => {
    const db = new pg.Client();
    await db.connect();
    return db;
  }),
);

if (warm === 0) startClock();
await Promise.all(databases.map(drain));
const seconds = (performance.now() - clock.at) / 1000;
const used = process.cpuUsage(clock.cpu);

await Promise.all(databases.map((db) => db.end()));
await api.close();
console.log(
  `requests=${requests} ok=${ok} resent=${resent} seconds=${seconds.toFixed(6)} ` +
    `cpu_seconds=${((used.user + used.system) / 1e6).toFixed(6)} ` +
    `per_second=${((ok - clock.ok) / seconds).toFixed(1)}`,
);
