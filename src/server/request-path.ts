import { getPath } from "hono/utils/url";

/**
 * The path of a request, decoded as routes expect it. Without a usable `Host` (HTTP/1.0 needs none) Bun's URL is the
 * request's target alone, which begins with the path.
 */
export function pathOf({ url }: Request): string {
  const absolute = url.startsWith("/") ? `http://localhost${url}` : url;
  return getPath({ url: absolute } as Request);
}
