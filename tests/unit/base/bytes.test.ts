import { expect, setDefaultTimeout, test } from "bun:test";
import { formatByteCounts, formatBytes } from "../../../src/base/bytes.ts";

setDefaultTimeout(300_000);

test.each([
  [0, "0 bytes"],
  [1023, "1023 bytes"],
  [1024, "1 KiB"],
  [1536, "1.5 KiB"],
  [2 ** 20 - 1, "1 MiB"],
  [2 ** 31, "2 GiB"],
  [150_754_820_096, "140.4 GiB"],
  [3 * 2 ** 50, "3072 TiB"],
])("%d bytes are %s", (count, text) => {
  expect(formatBytes(count)).toBe(text);
});

test("counts to be compared look different when they are", () => {
  const mebibyte = 2 ** 20;
  expect(formatByteCounts(6 * mebibyte, mebibyte)).toEqual(["6 MiB", "1 MiB"]);
  expect(formatByteCounts(2 * mebibyte, 1.99 * mebibyte)).toEqual(["2 MiB", "1.99 MiB"]);
  expect(formatByteCounts(2 * mebibyte, 2 * mebibyte - 1)).toEqual(["2097152 bytes", "2097151 bytes"]);
  expect(formatByteCounts(4096, 2 ** 25, 2 ** 25)).toEqual(["4 KiB", "32 MiB", "32 MiB"]);
});
