/** Logits that are capped in place. A unit is `CAP_PART` of them. */
import * as layout from "./layout";
import { argument, capped } from "./vectors";

/** Arguments: logits, how many, and the cap. What is no whole vector at the end is capped in `scratch`. */
export function capLogits(unit: i32, scratch: usize): void {
  const count = argument<i32>(1);
  const cap = argument<f32>(2);
  const first = unit * layout.CAP_PART;
  const size = (<usize>min(layout.CAP_PART, count - first)) << 2;
  const logits = argument<usize>(0) + ((<usize>first) << 2);
  const whole = size & ~15;
  for (let i: usize = 0; i < whole; i += 16) v128.store(logits + i, capped(v128.load(logits + i), cap));
  if (whole === size) return;
  memory.copy(scratch, logits + whole, size - whole);
  v128.store(scratch, capped(v128.load(scratch), cap));
  memory.copy(logits + whole, scratch, size - whole);
}
