import type { BulkUpload } from "../backend/backend.ts";
import type { WeightChunk } from "./weight-plan.ts";
import { WeightReader } from "./weight-reader.ts";

/** Reads that a reader has at once: one under way, and one so that it need not wait for this thread in between. */
const READS_PER_READER = 2;

/**
 * Reads chunks on `readerCount` Workers into the buffers of a bulk upload and commits each as it arrives, in any order.
 * When it settles, nothing reads from or writes to the buffers.
 * @param chunks None may exceed the smallest buffer.
 * @param onChunk Called as each chunk has been committed.
 * @throws the first error, of a reader or of the upload; no further chunk is begun.
 */
export async function bulkLoad(
  chunks: Generator<WeightChunk>,
  upload: BulkUpload,
  readerCount: number,
  onChunk: (chunk: WeightChunk) => void,
): Promise<void> {
  using stack = new DisposableStack();
  const readers = Array.from({ length: readerCount }, () => stack.use(new WeightReader()));
  // The buffer committed longest ago is taken first. A quarter of them stay with the device, which copies meanwhile.
  const free = [...upload.buffers];
  const lanes = Math.min(readerCount * READS_PER_READER, Math.ceil(free.length * 0.75));
  const run = async (reader: WeightReader) => {
    // A loop that throws ends the generator, and so every other lane after the chunk it is reading.
    for (const chunk of chunks) {
      const buffer = free.shift()!;
      buffer.wait();
      await reader.read(chunk.read, buffer.address, buffer.byteLength);
      buffer.commit(chunk.target);
      free.push(buffer);
      onChunk(chunk);
    }
  };
  const results = await Promise.allSettled(
    Array.from({ length: lanes }, (_, i) => run(readers[i % readerCount]!)),
  );
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
