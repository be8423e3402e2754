import type { AttentionForm } from "../../attention-spec.ts";
import type { Macros } from "../kernel-source.ts";

/** The form's macros that kernels of scores are specialised by: without any they are those of most models. */
export function scoreDefines({ hasSoftCap, hasSinks }: AttentionForm): Macros {
  return { ...(hasSoftCap && { SOFT_CAP: 1 }), ...(hasSinks && { ATTENTION_SINKS: 1 }) };
}

/** Those of kernels that prepare queries. */
export function queryDefines({ hasQueryScales }: AttentionForm): Macros {
  return hasQueryScales ? { QUERY_SCALES: 1 } : {};
}

/** A number below 8, of its own for each form but for the rotation. */
export function formKey({ hasQueryScales, hasSoftCap, hasSinks }: AttentionForm): number {
  return Number(hasQueryScales) * 4 + Number(hasSoftCap) * 2 + Number(hasSinks);
}

/** Keys of forms are below this. */
export const FORM_KEYS = 8;
