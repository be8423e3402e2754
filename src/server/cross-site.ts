import { ApiError } from "./errors.ts";
import { headerOf } from "./header.ts";

/** The methods that never change anything here. */
const SAFE = /^(GET|HEAD|OPTIONS)$/;

/**
 * Refuses what a page of another site makes its visitor's browser do here without having asked first (CORS): a request that brings
 * neither JSON nor a key, which any page may send to a server on its visitor's own machine. Fetch metadata says so; other clients
 * than browsers send none.
 * @param allowed origins of `corsOrigins`
 * @throws ApiError 403 `cross_site`
 */
export function refuseCrossSite({ method, headers }: Request, allowed: readonly string[]): void {
  if (SAFE.test(method) || headers.has("authorization") || headers.has("x-api-key")) return;
  const type = headerOf(headers, "content-type")?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json") refuseForeign(headers, allowed);
}

/**
 * Refuses a page of another site. What it reads is kept from it by the browser, but not what a reply costs that never ends.
 * @param allowed origins of `corsOrigins`
 * @throws ApiError 403 `cross_site`
 */
export function refuseForeign(headers: Headers, allowed: readonly string[]): void {
  if (headerOf(headers, "sec-fetch-site") !== "cross-site") return;
  if (allowed.includes("*") || allowed.includes(headerOf(headers, "origin") ?? "")) return;
  throw new ApiError(403, "cross_site", "a page of another site may not send this");
}
