// @ts-check
// PNG files with an embedded recipe, and ZIP archives.

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

export function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function concatenate(parts) {
  const result = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    result.set(part, offset);
    offset += part.length;
  }
  return result;
}

// Encode integers, given as [value, bytes] pairs, one after the other.
function encodeIntegers(littleEndian, ...numbers) {
  const view = new DataView(new ArrayBuffer(numbers.reduce((length, [, bytes]) => length + bytes, 0)));
  let offset = 0;
  for (const [value, bytes] of numbers) {
    if (bytes === 2) view.setUint16(offset, value, littleEndian);
    else view.setUint32(offset, value, littleEndian);
    offset += bytes;
  }
  return new Uint8Array(view.buffer);
}

// Insert the recipe, ASCII text, as a tEXt chunk after the header of a PNG; `fluxnb.open_recipe` reads it.
export function withRecipe(png, recipe) {
  const body = new TextEncoder().encode(`tEXtfluxnb\0${recipe}`);
  const chunk = [encodeIntegers(false, [body.length - 4, 4]), body, encodeIntegers(false, [crc32(body), 4])];
  const header = 8 + 25; // signature and the IHDR chunk, which is always first and of this length
  return concatenate([png.subarray(0, header), ...chunk, png.subarray(header)]);
}

// A ZIP archive without compression, since PNG is compressed already.
export function zipped(files) {
  const locals = [];
  const entries = [];
  let offset = 0;
  for (const { name, bytes } of files) {
    const title = new TextEncoder().encode(name);
    // Version 2.0, names in UTF-8, stored, and the earliest date of ZIP so that equal contents give equal files.
    const fields = encodeIntegers(
      true,
      [20, 2],
      [0x800, 2],
      [0, 2],
      [0, 2],
      [0x21, 2],
      [crc32(bytes), 4],
      [bytes.length, 4],
      [bytes.length, 4],
      [title.length, 2],
      [0, 2],
    );
    const local = concatenate([encodeIntegers(true, [0x04034b50, 4]), fields, title, bytes]);
    entries.push(
      concatenate([
        encodeIntegers(true, [0x02014b50, 4], [20, 2]),
        fields,
        encodeIntegers(true, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]),
        title,
      ]),
    );
    locals.push(local);
    offset += local.length;
  }
  const directory = concatenate(entries);
  const count = files.length;
  const end = encodeIntegers(
    true,
    [0x06054b50, 4],
    [0, 2],
    [0, 2],
    [count, 2],
    [count, 2],
    [directory.length, 4],
    [offset, 4],
    [0, 2],
  );
  return concatenate([...locals, directory, end]);
}
