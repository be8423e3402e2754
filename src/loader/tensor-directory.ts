import { ModelDataError } from "../base/errors.ts";
import { readFully } from "../base/read-fully.ts";
import type { TensorDirectory } from "../base/tensor-directory.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { CheckpointTensor } from "./checkpoint-tensor.ts";

/** The most bytes of a tensor that is looked into ahead: zero points, orders of columns and biases are less. */
const MAX_BYTES = 2 ** 28;

/** The tensors of an open checkpoint. */
export function directoryOf(checkpoint: Checkpoint): TensorDirectory {
  return {
    find: (name) => {
      const tensor = checkpoint.tensors.get(name);
      return tensor && { dtype: tensor.dtype, shape: tensor.shape, file: tensor.file.path };
    },
    words: (name) => {
      const tensor = checkpoint.tensors.get(name)!;
      if (tensor.dtype !== "I32" && tensor.dtype !== "I64")
        throw new ModelDataError(tensor.file.path, `tensor "${name}" is ${tensor.dtype}, expected integers`);
      return new Int32Array(contents(name, tensor).buffer);
    },
    isZero: (name) => contents(name, checkpoint.tensors.get(name)!).every((byte) => byte === 0),
  };
}

function contents(name: string, { file, begin, end }: CheckpointTensor): Uint8Array {
  if (end - begin > MAX_BYTES)
    throw new ModelDataError(
      file.path,
      `tensor "${name}" has ${end - begin} bytes, at most ${MAX_BYTES} are allowed`,
    );
  const bytes = new Uint8Array(end - begin);
  readFully(file.path, file.fd, bytes, begin);
  return bytes;
}
