/**
 * Values of `format` that are enforced, as regular expressions of the whole text. Each matches a part of what its
 * specification allows: that part which is written in practice.
 */
const OCTET = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const IPV4 = `(?:${OCTET}\\.){3}${OCTET}`;
const H16 = "[0-9A-Fa-f]{1,4}";
const LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?";
const HOSTNAME = `(?:${LABEL}\\.){0,3}${LABEL}`;
const DATE_YEAR = "[0-9]{4}";
const LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)";
/** RFC 3339 with the days that each month has. */
const DATE = [
  `(?:${DATE_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])`,
  "(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)",
  `02-(?:0[1-9]|1\\d|2[0-8]))|${LEAP_YEAR}-02-29)`,
].join("|");
const TIME = "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:[Zz]|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)";
const PATH_CHAR = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})";
const QUERY = `(?:[?](?:${PATH_CHAR}|[/?])*)?(?:#(?:${PATH_CHAR}|[/?])*)?`;
/** Its host has no limits of length: RFC 3986 knows none. */
const HOST = "[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*";
const URI = `[A-Za-z][A-Za-z0-9+.-]*://${HOST}(?::\\d{1,4})?(?:/${PATH_CHAR}*)*${QUERY}`;

export const FORMATS: Readonly<Record<string, string>> = {
  date: DATE,
  time: TIME,
  "date-time": `${DATE}[Tt]${TIME}`,
  duration:
    "P(?:\\d{1,4}W|(?:\\d{1,4}Y(?:\\d{1,4}M(?:\\d{1,4}D)?)?|\\d{1,4}M(?:\\d{1,4}D)?|\\d{1,4}D)(?:T(?:\\d{1,4}H(?:\\d{1,4}M(?:\\d{1,4}S)?)?|\\d{1,4}M(?:\\d{1,4}S)?|\\d{1,4}S))?|T(?:\\d{1,4}H(?:\\d{1,4}M(?:\\d{1,4}S)?)?|\\d{1,4}M(?:\\d{1,4}S)?|\\d{1,4}S))",
  email: "[A-Za-z0-9_+-]+(?:\\.[A-Za-z0-9_+-]+)*@(?:[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*\\.)+[A-Za-z]{2,24}",
  hostname: HOSTNAME,
  ipv4: IPV4,
  ipv6: `(?:(?:${H16}:){7}${H16}|(?:${H16}:){1,7}:|(?:${H16}:){1,6}:${H16}|(?:${H16}:){1,5}(?::${H16}){2}|(?:${H16}:){1,4}(?::${H16}){3}|::(?:${H16}:){0,6}${H16}|::)`,
  uuid: "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
  uri: URI,
  "uri-reference": `(?:${URI}|(?:/${PATH_CHAR}+)+${QUERY})`,
  "json-pointer": "(?:/(?:[^/~]|~[01])*)*",
};

/** Values of `contentEncoding` that are enforced. */
export const ENCODINGS: Readonly<Record<string, string>> = {
  base64: "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
};
