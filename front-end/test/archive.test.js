import assert from "node:assert/strict";
import { test } from "node:test";
import zlib from "node:zlib";
import { crc32, withRecipe, zipped } from "../src/archive.js";

const text = (value) => new TextEncoder().encode(value);
const PNG_HEADER = Uint8Array.from([137, 80, 78, 71, 13, 10, 26, 10, ...new Uint8Array(25), 9, 9]);

test("the checksum is that of ZIP and PNG", () => {
  assert.equal(crc32(text("123456789")), 0xcbf43926);
  if (zlib.crc32) assert.equal(crc32(PNG_HEADER), zlib.crc32(PNG_HEADER)); // since Node 22
});

test("the recipe is a tEXt chunk behind the header of the PNG", () => {
  const png = withRecipe(PNG_HEADER, '{"seed":1}');
  const view = new DataView(png.buffer);
  assert.equal(view.getUint32(33), "fluxnb".length + 1 + 10);
  assert.equal(new TextDecoder().decode(png.subarray(37, 41)), "tEXt");
  assert.equal(new TextDecoder().decode(png.subarray(41, 58)), 'fluxnb\0{"seed":1}');
  assert.equal(view.getUint32(58), crc32(png.subarray(37, 58)));
  assert.deepEqual([...png.subarray(62)], [9, 9]);
});

test("an archive has its directory at the end, with one entry for each file", () => {
  const archive = zipped([
    { name: "a.png", bytes: text("first") },
    { name: "ü.png", bytes: text("second") },
  ]);
  const end = new DataView(archive.buffer, archive.length - 22);
  assert.equal(end.getUint32(0, true), 0x06054b50);
  assert.equal(end.getUint16(10, true), 2);
  const directory = new DataView(archive.buffer, end.getUint32(16, true));
  assert.equal(directory.getUint32(0, true), 0x02014b50);
  assert.equal(directory.getUint32(16, true), crc32(text("first")));
});
