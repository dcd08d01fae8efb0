// Reads a run as docs/format.md specifies it: node reader.mjs RUN [NAME]
// Lists the records, checks every checksum, and prints the tensors called NAME. Exit code 1 when something is damaged.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { decode, decodeMulti } from "@msgpack/msgpack";
import { xxhash3 } from "hash-wasm";

const FOOTER_BYTES = 26;
let damaged = 0;

function complain(message) {
  damaged += 1;
  console.log(`DAMAGED ${message}`);
}

async function checksum(...parts) {
  return BigInt("0x" + (await xxhash3(Buffer.concat(parts))));
}

// Frames: [kind, meta, checksum of kind and meta, (padding, payload, checksum of the payload)...].
async function* frames(file, bytes) {
  try {
    for (const fields of decodeMulti(bytes, { useBigInt64: true })) {
      const [kind, meta, digest, ...rest] = fields;
      if (kind === "footer") continue;
      const what = `${file}: ${kind} at ${meta.byteOffset - bytes.byteOffset}`;
      if ((await checksum(Buffer.from(kind), meta)) !== digest) complain(`${what}: metadata`);
      const payloads = [];
      for (let i = 0; i < rest.length; i += 3) {
        const payload = rest[i + 1];
        if ((payload.byteOffset - bytes.byteOffset) % 64 !== 0) complain(`${what}: alignment`);
        if (rest[i].some((byte) => byte !== 0)) complain(`${what}: padding`);
        if ((await checksum(payload)) !== rest[i + 2]) complain(`${what}: payload`);
        payloads.push(payload);
      }
      yield { kind, meta: decode(meta, { useBigInt64: true }), payloads };
    }
  } catch (error) {
    complain(`${file}: truncated or no msgpack: ${error.message}`);
  }
}

// The index, found from the end of the file: a footer of fixed length names its offset.
async function index(bytes) {
  if (bytes.length < FOOTER_BYTES) return null;
  const footer = bytes.subarray(bytes.length - FOOTER_BYTES);
  let fields;
  try {
    fields = decode(footer, { useBigInt64: true });
  } catch {
    return null;
  }
  if (!Array.isArray(fields) || fields[0] !== "footer") return null;
  const [kind, offset, digest] = fields;
  const position = Buffer.alloc(8);
  position.writeBigUInt64BE(BigInt(offset));
  if ((await checksum(footer.subarray(1, 8), position)) !== BigInt(digest)) return null;
  for (const [kind, , , , payload] of decodeMulti(bytes.subarray(Number(offset)), { useBigInt64: true })) {
    return kind === "index" ? decode(payload, { useBigInt64: true }) : null;
  }
}

function bfloat16(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = new DataView(new ArrayBuffer(4));
  return Array.from({ length: bytes.byteLength / 2 }, (_, i) => {
    word.setUint16(0, view.getUint16(2 * i, true));
    return word.getFloat32(0);
  });
}

function values(record, payload) {
  if (record.level !== undefined) return `level ${record.level}, ${payload.length} bytes`;
  if (record.compression !== undefined) return `compressed with ${record.compression}`;
  if (record.dtype === undefined) return JSON.stringify(decode(payload));
  if (record.dtype === "bfloat16") return JSON.stringify(bfloat16(payload));
  return `${payload.length} bytes of ${record.dtype}`;
}

const [run, wanted] = process.argv.slice(2);
for (const file of readdirSync(run).sort()) {
  if (!/^rank-\d{5}(\.\d{4})?\.msgpack$/.test(file)) continue;
  const bytes = readFileSync(join(run, file));
  let records = 0;
  for await (const { kind, meta, payloads } of frames(file, bytes)) {
    if (kind === "header") console.log(`${file}: version ${meta.version}, rank ${meta.rank} of ${meta.world_size}`);
    if (kind === "step") console.log(`step ${meta.step}: ${meta.layout ? `${meta.layout.rows} rows` : "no layout"}`);
    if (kind !== "record") continue; // Kinds that a reader does not know are skipped.
    records += 1;
    const tags = Object.entries(meta.tags ?? {}).map(([key, value]) => ` ${key}=${value}`);
    const type = meta.dtype === undefined ? "value" : `${meta.dtype} [${meta.shape}]`;
    console.log(`record ${meta.name} step=${meta.step} occurrence=${meta.occurrence}${tags.join("")} ${type}`);
    if (meta.name === wanted) console.log(`  ${values(meta, Buffer.concat(payloads))}`);
  }
  const columns = await index(bytes);
  const indexed = columns === null ? "no index" : `${columns.offset.length / 8} in the index`;
  console.log(`${file}: ${records} records, ${indexed}`);
}
console.log(damaged ? `${damaged} damaged` : "every checksum is right");
process.exitCode = damaged ? 1 : 0;
