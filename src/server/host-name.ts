import { hostname } from "node:os";
import { ApiError } from "./errors.ts";

/** A name or address and a port, as RFC 3986 spells them. */
const HOST = /^([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?$/i;
const ADDRESS = /^(\d{1,3}(\.\d{1,3}){3}|\[.*\])$/;
/** Names of one label, and domains, that no public DNS answers for. */
const LOCAL = /^[^.]+$|\.(localhost|local|internal)$/;

/**
 * Refuses a request for a name that is not this server's. A page may have had its own name point to its visitor's machine (DNS
 * rebinding): to the browser both are then the same site, and nothing but the name tells them apart. Addresses, names of local
 * networks, and the machine's own are no page's.
 * @param host the request's `Host`; HTTP/1.0 needs none
 * @param allowed further names; `*`: all
 * @throws ApiError 400 `invalid_host`; 403 `unknown_host`
 */
export function refuseUnknownHost(host: string | undefined, allowed: readonly string[]): void {
  if (host === undefined) return;
  const name = HOST.exec(host)?.[1]?.toLowerCase().replace(/\.$/, "");
  if (name === undefined) throw new ApiError(400, "invalid_host", "invalid Host header");
  if (ADDRESS.test(name) || LOCAL.test(name) || name === hostname().toLowerCase()) return;
  if (allowed.some((other) => other === "*" || other.toLowerCase() === name)) return;
  throw new ApiError(
    403,
    "unknown_host",
    `${name} is not a name of this server: allowedHosts does not have it`,
  );
}
