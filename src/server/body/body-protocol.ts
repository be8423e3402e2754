import type { EncodedError } from "../../threads/error-codec.ts";
import type { ApiError } from "../errors.ts";
import type { BodyLimits } from "../schemas/request-body.ts";
import type { ParsedRequest, RequestKind } from "./parse-request.ts";

/** A body to be parsed. Its bytes are transferred. */
export interface BodyJob {
  readonly job: number;
  readonly kind: RequestKind;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly limits: BodyLimits;
}

/** The outcome of a job: the request, a refusal that the client is told, or a bug. */
export type BodyReply =
  | { readonly job: number; readonly parsed: ParsedRequest<RequestKind> }
  | {
      readonly job: number;
      readonly refusal: Pick<ApiError, "status" | "code" | "message" | "param" | "headers">;
    }
  | { readonly job: number; readonly error: EncodedError };
