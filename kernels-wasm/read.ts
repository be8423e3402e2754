/** Reads memory and does nothing with it: what bandwidth is measured by. */
import { argument } from "./vectors";

/** Unit `unit` of memory from argument 0 on, each of argument 1 bytes, a multiple of 64; a word of each goes to argument 2. */
export function read(unit: i32): void {
  const bytes = argument<usize>(1);
  let at = argument<usize>(0) + <usize>unit * bytes;
  const end = at + bytes;
  let a = i32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  for (; at < end; at += 64) {
    a = v128.xor(a, v128.load(at));
    b = v128.xor(b, v128.load(at, 16));
    c = v128.xor(c, v128.load(at, 32));
    d = v128.xor(d, v128.load(at, 48));
  }
  v128.store(argument<usize>(2) + ((<usize>unit) << 4), v128.xor(v128.xor(a, b), v128.xor(c, d)));
}
