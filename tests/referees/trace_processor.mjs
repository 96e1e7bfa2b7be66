// Asks Perfetto's own trace processor about trace files: node trace_processor.mjs BUNDLE QUERIES TRACE...
//
// BUNDLE is the folder of a build of Perfetto's UI (engine_bundle.js and trace_processor.wasm), QUERIES a JSON object of
// SQL by name. For each trace one line of JSON is printed: {name: [row, ...]}, a row an array of cells.
//
// The bundle is a web worker. It is given a port, over which it is sent requests and sends replies in Perfetto's
// protobuf TraceProcessorRpc; the few fields of that which are needed are written and read here.

import { readFileSync } from "node:fs";
import { join } from "node:path";

const [bundle, queriesPath, ...traces] = process.argv.slice(2);
const queries = JSON.parse(readFileSync(queriesPath, "utf8"));
const engine = readFileSync(join(bundle, "engine_bundle.js"), "utf8");
const APPEND = 1, FINALIZE = 2, QUERY = 3, RESET = 11;  // TraceProcessorRpc.TraceProcessorMethod
const NULL = 1, INTEGER = 2, REAL = 3, TEXT = 4, BLOB = 5;  // QueryResult.CellsBatch.CellType
const PIECE = 16 << 20;  // bytes of a trace that are sent at once

function varint(value) {
  const bytes = [];
  for (let rest = BigInt(value); ; rest >>= 7n) {
    if (rest < 128n) return [...bytes, Number(rest)];
    bytes.push(Number(rest & 127n) | 128);
  }
}

function field(number, bytes) {
  return Buffer.concat([Buffer.from([...varint((number << 3) | 2), ...varint(bytes.length)]), bytes]);
}

function request(sequence, method, argument = Buffer.alloc(0)) {
  return field(1, Buffer.concat([Buffer.from([8, ...varint(sequence), 16, method]), argument]));
}

function* fields(bytes) {
  let place = 0;
  const number = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[place++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (place < bytes.length) {
    const key = Number(number());
    if ((key & 7) === 0) yield [key >> 3, number()];
    else if ((key & 7) === 2) {
      const length = Number(number());
      yield [key >> 3, bytes.subarray(place, place += length)];
    } else if ((key & 7) === 1) yield [key >> 3, bytes.subarray(place, place += 8)];
    else throw new Error(`a field of wire type ${key & 7}`);
  }
}

function* numbers(packed) {
  let value = 0n, shift = 0n;
  for (const byte of packed) {
    value |= BigInt(byte & 127) << shift;
    shift += 7n;
    if (byte >= 128) continue;
    yield Number(BigInt.asIntN(64, value));
    value = shift = 0n;
  }
}

// The rows of one QueryResult, whose cells come in batches, one array for each type.
function rows(results) {
  let columns = 0;
  const cells = [];
  for (const result of results) {
    for (const [number, value] of fields(result)) {
      if (number === 1) columns += 1;
      else if (number === 2 && value.length) throw new Error(value.toString());
      else if (number === 3) {
        let types = [];
        const stores = { [INTEGER]: [], [REAL]: [], [TEXT]: [], [BLOB]: [] };
        for (const [part, content] of fields(value)) {
          if (part === 1) types = [...content];
          else if (part === 2) for (const number of numbers(content)) stores[INTEGER].push(number);
          else if (part === 3) for (let at = 0; at < content.length; at += 8) stores[REAL].push(content.readDoubleLE(at));
          else if (part === 4) stores[BLOB].push(content.toString("hex"));
          else if (part === 5) for (const text of content.toString().split("\0").slice(0, -1)) stores[TEXT].push(text);
        }
        const next = { [INTEGER]: 0, [REAL]: 0, [TEXT]: 0, [BLOB]: 0 };
        for (const type of types) cells.push(type === NULL ? null : stores[type][next[type]++]);
      }
    }
  }
  return Array.from({ length: columns ? cells.length / columns : 0 }, (_, row) => cells.slice(row * columns, (row + 1) * columns));
}

// A new trace processor: a function that sends one request and promises the replies up to the last one.
async function start() {
  const scope = { location: { href: "http://bundle/engine_bundle.js" } };
  class XMLHttpRequest {  // the only way in which a worker reads a file and waits for it
    open(_method, url) { this.name = url.split("/").pop(); }
    send() { this.response = new Uint8Array(readFileSync(join(bundle, this.name))).buffer; }
  }
  const worker = { self: scope, location: scope.location, WorkerGlobalScope: Object, XMLHttpRequest, process: undefined };
  new Function(...Object.keys(worker), engine)(...Object.values(worker));
  let settle, isLast, replies = [];
  const port = {
    postMessage(bytes) {
      for (const [, message] of fields(Buffer.from(bytes))) {
        const found = Object.fromEntries(fields(message));
        if (found[5]) throw new Error(`the trace processor says ${found[5]}`);
        replies.push(found);
        if (isLast(found)) settle(replies.splice(0));
      }
    },
  };
  scope.onmessage({ data: port });
  await new Promise((resolve) => setTimeout(resolve, 0));  // the engine is ready once its own promises have been kept
  let sequence = 0;
  return (method, argument, last = () => true) => new Promise((resolve) => {
    [settle, isLast] = [resolve, last];
    port.onmessage({ data: new Uint8Array(request(++sequence, method, argument)) });
  });
}

const hasLastBatch = (reply) => [...fields(reply[203])].some(([n, batch]) => n === 3 && [...fields(batch)].some(([m, v]) => m === 6 && v));

const send = await start();
for (const path of traces) {
  await send(RESET);
  const trace = readFileSync(path);
  for (let at = 0; at < trace.length; at += PIECE) {
    const [reply] = await send(APPEND, field(101, trace.subarray(at, at + PIECE)));
    for (const [number, value] of fields(reply[201])) if (number === 2) throw new Error(`${path}: ${value}`);
  }
  await send(FINALIZE);
  const answers = {};
  for (const [name, sql] of Object.entries(queries)) {
    const replies = await send(QUERY, field(103, field(1, Buffer.from(sql))), hasLastBatch);
    answers[name] = rows(replies.map((reply) => reply[203]));
  }
  console.log(JSON.stringify(answers));
}
