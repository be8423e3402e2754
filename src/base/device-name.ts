/** `cpu` is the fast backend of CPUs, `cpu-reference` the one in plain TypeScript that defines what all others must compute. */
export type DeviceName = "cuda" | "cpu" | "cpu-reference";
