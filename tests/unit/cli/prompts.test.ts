import { expect, setDefaultTimeout, test } from "bun:test";
import { readPiped } from "../../../src/cli/prompts.ts";

setDefaultTimeout(300_000);

const bytes = (text: string) => new TextEncoder().encode(text);

test("a pipe is read to its end, however it is cut, once something has come", async () => {
  const parts = [bytes("Once upon "), bytes("ü").subarray(0, 1), bytes("ü").subarray(1), bytes("ber\n")];
  let asked = 0;
  const stream = new ReadableStream<Uint8Array>({
    async pull(controller) {
      // The first part is there at once; the others take longer than the patience for it.
      if (asked++ > 0) await Bun.sleep(15);
      const part = parts.shift();
      if (part) controller.enqueue(part);
      else controller.close();
    },
  });
  expect(await readPiped(stream, 10)).toBe("Once upon über\n");
});

test("a pipe of which nothing comes is given up, one that ends is empty", async () => {
  expect(await readPiped(new ReadableStream(), 10)).toBeUndefined();
  expect(await readPiped(new Response("").body!, 60_000)).toBe("");
});
