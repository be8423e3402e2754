import type { ServerAccess } from "./server-access.ts";
import { Store } from "./store.ts";

/** The served names, the first of which is the default, and their context in tokens. */
export interface ServedModels {
  readonly names: readonly string[];
  readonly context: number;
  /** Why there are none; empty otherwise. */
  readonly problem: string;
}

/** `/v1/models`. */
export class Models {
  readonly served = new Store<ServedModels>({ names: [], context: 0, problem: "" });

  constructor(private readonly access: ServerAccess) {}

  async load(): Promise<void> {
    try {
      const reply = await this.access.fetch("v1/models");
      const { data } = (await reply.json()) as { data: { id: string; max_model_len?: number }[] };
      this.served.value = {
        names: data.map(({ id }) => id),
        context: data[0]?.max_model_len ?? 0,
        problem: "",
      };
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error);
      this.served.value = { names: [], context: 0, problem };
    }
  }
}
