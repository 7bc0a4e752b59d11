// Pictures that leave the page: PNG files that carry their recipe, several of them in one ZIP.

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// Numbers one after the other, given as [value, bytes] pairs.
function packed(littleEndian, ...numbers) {
  const view = new DataView(new ArrayBuffer(numbers.reduce((length, [, bytes]) => length + bytes, 0)));
  let at = 0;
  for (const [value, bytes] of numbers) {
    if (bytes === 2) view.setUint16(at, value, littleEndian);
    else view.setUint32(at, value, littleEndian);
    at += bytes;
  }
  return new Uint8Array(view.buffer);
}

// A PNG with the recipe in a tEXt chunk right after its header, where `fluxnb.open_recipe` looks; ASCII text only.
export function withRecipe(png, recipe) {
  const body = new TextEncoder().encode(`tEXtfluxnb\0${recipe}`);
  const chunk = [packed(false, [body.length - 4, 4]), body, packed(false, [crc32(body), 4])];
  const header = 8 + 25; // signature, then the chunk IHDR, which is always first and always this long
  return joined([png.subarray(0, header), ...chunk, png.subarray(header)]);
}

// A ZIP of files that are stored as they are: PNG is compressed already.
export function zipped(files) {
  const locals = [];
  const entries = [];
  let offset = 0;
  for (const { name, bytes } of files) {
    const title = new TextEncoder().encode(name);
    // Version 2.0, names in UTF-8, stored, the first day that ZIP knows (the same stars give the same file).
    const facts = packed(true, [20, 2], [0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(bytes), 4],
      [bytes.length, 4], [bytes.length, 4], [title.length, 2], [0, 2]); // prettier-ignore
    const local = joined([packed(true, [0x04034b50, 4]), facts, title, bytes]);
    entries.push(joined([
      packed(true, [0x02014b50, 4], [20, 2]), facts,
      packed(true, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), title,
    ])); // prettier-ignore
    locals.push(local);
    offset += local.length;
  }
  const directory = joined(entries);
  const count = files.length;
  const end = packed(true, [0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [directory.length, 4],
    [offset, 4], [0, 2]); // prettier-ignore
  return joined([...locals, directory, end]);
}

function loaded(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}

async function pngOf(url, recipe) {
  const image = await loaded(url);
  const canvas = make("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return withRecipe(new Uint8Array(await blob.arrayBuffer()), recipe);
}

// One picture as a PNG, several as a ZIP of PNGs; each is { name, url, recipe }.
async function download(pictures) {
  const files = [];
  for (const { name, url, recipe } of pictures) files.push({ name: `${name}.png`, bytes: await pngOf(url, recipe) });
  const [one] = files;
  const many = files.length > 1;
  const bytes = many ? zipped(files) : one.bytes;
  const link = make("a");
  link.download = many ? "starred.zip" : one.name;
  link.href = URL.createObjectURL(new Blob([bytes], { type: many ? "application/zip" : "image/png" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
