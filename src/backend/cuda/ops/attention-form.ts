import type { AttentionForm } from "../../attention-spec.ts";
import type { Macros } from "../kernel-source.ts";

/** The form's macros that kernels of scores are specialised by: without any they are those of most models. */
export function scoreDefines({ hasSoftCap, hasSinks }: AttentionForm): Macros {
  return { ...(hasSoftCap && { SOFT_CAP: 1 }), ...(hasSinks && { ATTENTION_SINKS: 1 }) };
}

/** Those of kernels that prepare projections. */
export function projectionDefines({
  hasQueryScales,
  normsValues,
}: Pick<AttentionForm, "hasQueryScales" | "normsValues">): Macros {
  return { ...(hasQueryScales && { QUERY_SCALES: 1 }), ...(normsValues && { NORMS_VALUES: 1 }) };
}

/** A number below `FORM_KEYS`, of its own for each form but for the rotation. */
export function formKey(form: AttentionForm): number {
  const { hasQueryScales, hasSoftCap, hasSinks, normsValues, readsOnly } = form;
  const bits = [hasQueryScales, hasSoftCap, hasSinks, normsValues, readsOnly];
  return bits.reduce((key, bit) => key * 2 + Number(bit), 0);
}

export const FORM_KEYS = 2 ** 5;
