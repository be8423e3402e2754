import { parse, tokenize } from "@huggingface/jinja";

/** A syntax node, as the parser of `@huggingface/jinja` makes them: what the interpreter reads of each. */
export type Node =
  | { readonly type: "Program"; readonly body: readonly Node[] }
  | {
      readonly type: "If";
      readonly test: Node;
      readonly body: readonly Node[];
      readonly alternate: readonly Node[];
    }
  | For
  | { readonly type: "Break" | "Continue" | "Comment" }
  | {
      readonly type: "Set";
      readonly assignee: Node;
      readonly value: Node | null;
      readonly body: readonly Node[];
    }
  | Macro
  | {
      readonly type: "CallStatement";
      readonly call: Call;
      readonly callerArgs: readonly Node[] | null;
      readonly body: readonly Node[];
    }
  | { readonly type: "FilterStatement"; readonly filter: Name | Call; readonly body: readonly Node[] }
  | { readonly type: "FilterExpression"; readonly operand: Node; readonly filter: Name | Call }
  | { readonly type: "TestExpression"; readonly operand: Node; readonly negate: boolean; readonly test: Name }
  | {
      readonly type: "MemberExpression";
      readonly object: Node;
      readonly property: Node;
      readonly computed: boolean;
    }
  | Slice
  | Call
  | Name
  | { readonly type: "IntegerLiteral" | "FloatLiteral"; readonly value: number }
  | { readonly type: "StringLiteral"; readonly value: string }
  | { readonly type: "ArrayLiteral" | "TupleLiteral"; readonly value: readonly Node[] }
  | { readonly type: "ObjectLiteral"; readonly value: ReadonlyMap<Node, Node> }
  | { readonly type: "UnaryExpression"; readonly operator: Operator; readonly argument: Node }
  | {
      readonly type: "BinaryExpression";
      readonly operator: Operator;
      readonly left: Node;
      readonly right: Node;
    }
  | { readonly type: "Ternary"; readonly condition: Node; readonly trueExpr: Node; readonly falseExpr: Node }
  | Select
  | { readonly type: "KeywordArgumentExpression"; readonly key: Name; readonly value: Node }
  | { readonly type: "SpreadExpression" | "KeywordSpreadExpression"; readonly argument: Node };

export interface Name {
  readonly type: "Identifier";
  readonly value: string;
}

export interface Call {
  readonly type: "CallExpression";
  readonly callee: Node;
  readonly args: readonly Node[];
}

export interface For {
  readonly type: "For";
  readonly loopvar: Node;
  readonly iterable: Node;
  readonly body: readonly Node[];
  readonly defaultBlock: readonly Node[];
}

export interface Macro {
  readonly type: "Macro";
  readonly name: Name;
  readonly args: readonly Node[];
  readonly body: readonly Node[];
}

/** `value if test`: a loop's filter, or an expression that is undefined unless the test holds. */
export interface Select {
  readonly type: "SelectExpression";
  readonly lhs: Node;
  readonly test: Node;
}

export interface Slice {
  readonly type: "SliceExpression";
  readonly start?: Node;
  readonly stop?: Node;
  readonly step?: Node;
}

interface Operator {
  readonly value: string;
}

/** Lines end in `\n` whatever the file has, and white space is trimmed around blocks as transformers has Jinja do it. @throws Error for what is no template */
export function parseTemplate(source: string): Node {
  return parse(
    tokenize(source.replace(/\r\n?/g, "\n"), { lstrip_blocks: true, trim_blocks: true }),
  ) as unknown as Node;
}

/** Calls `visit` for a node and all below it. */
export function walk(node: unknown, visit: (node: Node) => void): void {
  if (typeof node !== "object" || node === null) return;
  if ("type" in node) visit(node as Node);
  const children = node instanceof Map ? [...node].flat() : Object.values(node);
  for (const child of children) walk(child, visit);
}
