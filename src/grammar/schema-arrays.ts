import type { SchemaDocument, SchemaNode } from "./schema-document.ts";
import type { Form } from "./schema-forms.ts";
import type { SchemaScalars } from "./schema-scalars.ts";

/** The items that a form's arrays may have. */
export interface ArrayItems {
  /** The schemas of the first items, by position: all of a position's hold. */
  readonly prefix: readonly (readonly SchemaNode[])[];
  /** Those of each further item. */
  readonly rest: readonly SchemaNode[];
  readonly min: number;
  readonly max: number;
}

/** Most items that are counted, by `minItems` or `maxItems`. */
const MAX_COUNTED = 4096;

/** Finds out what items arrays of a form have. */
export class SchemaArrays {
  constructor(
    private readonly document: SchemaDocument,
    private readonly scalars: SchemaScalars,
  ) {}

  items({ schemas }: Form): ArrayItems {
    let [min, max] = [0, Number.POSITIVE_INFINITY];
    const positions: SchemaNode[][] = [];
    const all = schemas.map((node) => ({ node, prefix: this.#prefix(node), items: this.#items(node) }));
    for (const node of schemas) {
      min = Math.max(min, this.#counted(node, "minItems") ?? 0);
      max = Math.min(max, this.#counted(node, "maxItems") ?? Number.POSITIVE_INFINITY);
    }
    const length = Math.max(0, ...all.map(({ prefix }) => prefix.length));
    for (let i = 0; i < length; i++)
      positions.push([...new Set(all.flatMap(({ prefix, items }) => prefix[i] ?? items ?? []))]);
    for (const node of schemas) this.#checkUnique(node, max);
    const rest = [...new Set(all.flatMap(({ items }) => items ?? []))];
    return { prefix: positions, rest, min, max };
  }

  #prefix(node: SchemaNode): readonly SchemaNode[] {
    const list = node.json["prefixItems"];
    if (list === undefined) return [];
    if (!Array.isArray(list))
      throw this.document.error("prefixItems", node.path, "it must be a list of schemas");
    return list.map((_, i) => this.document.child(node, "prefixItems", i));
  }

  #items(node: SchemaNode): SchemaNode | undefined {
    if (!("items" in node.json)) return undefined;
    if (Array.isArray(node.json["items"]))
      throw this.document.error("items", node.path, "a list of schemas is spelled prefixItems");
    return this.document.child(node, "items");
  }

  #counted(node: SchemaNode, keyword: string): number | undefined {
    const count = this.scalars.count(node, keyword);
    if (count !== undefined && count > MAX_COUNTED)
      throw this.document.error(keyword, node.path, `it may be at most ${MAX_COUNTED}`);
    return count;
  }

  #checkUnique(node: SchemaNode, max: number): void {
    const { uniqueItems } = node.json;
    if (uniqueItems !== undefined && typeof uniqueItems !== "boolean")
      throw this.document.error("uniqueItems", node.path, "it must be true or false");
    if (uniqueItems && max > 1)
      throw this.document.error("uniqueItems", node.path, "that items differ cannot be enforced");
  }
}
