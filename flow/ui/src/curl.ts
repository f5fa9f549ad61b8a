// A request as a command for the shell. Must never write a secret: what may be one is replaced.
import type { Span, Trace } from './api'

const SECRET = /pass|secret|token|key|auth|cookie|session|signature|sig$|credential|code$/i
const HEADER = 'http.request.header.'

const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`
const text = (span: Span, ...keys: string[]) => {
  for (const key of keys) {
    const value = span.attributes[key]
    if (value !== undefined && value !== '') return String(Array.isArray(value) ? value[0] : value)
  }
  return ''
}

function drawn(bytes: number): string {
  return [...crypto.getRandomValues(new Uint8Array(bytes))].map(byte => byte.toString(16).padStart(2, '0')).join('')
}

/** The URL with every value of its query that may be a secret replaced, and without a user. */
export function redacted(url: string): string {
  const [before, ...rest] = url.split('?')
  const bare = before!.replace(/\/\/[^/@]*@/, '//')
  if (!rest.length) return bare
  const pairs = rest.join('?').split('#')[0]!.split('&').map(pair => {
    const [name = ''] = pair.split('=')
    return SECRET.test(name) ? `${name}=REDACTED` : pair
  })
  return `${bare}?${pairs.join('&')}`
}

/** The command, or nothing where the span is no HTTP request. */
export function curl(trace: Trace, span: Span): string | undefined {
  const method = text(span, 'http.request.method', 'http.method')
  if (!method) return undefined
  let url = text(span, 'url.full', 'http.url')
  if (!url) {
    const host = text(span, 'server.address', 'net.host.name', 'http.host') || 'localhost'
    const port = text(span, 'server.port', 'net.host.port')
    const path = text(span, 'url.path', 'http.target', 'http.route') || '/'
    const search = text(span, 'url.query')
    url = `${text(span, 'url.scheme', 'http.scheme') || 'http'}://${host}${port && !host.includes(':') ? ':' + port : ''}${path}${search ? '?' + search : ''}`
  }
  const lines = [`curl -X ${quoted(method)} ${quoted(redacted(url))}`, `-H 'traceparent: 00-${drawn(16)}-${drawn(8)}-01'`]
  if (trace.operationName) lines.push(`-H ${quoted('X-Operation-Name: ' + trace.operationName)}`)
  for (const [key, value] of Object.entries(span.attributes)) {
    if (!key.startsWith(HEADER)) continue
    const name = key.slice(HEADER.length)
    const said = SECRET.test(name) ? 'REDACTED' : String(Array.isArray(value) ? value.join(', ') : value)
    lines.push(`-H ${quoted(`${name}: ${said}`)}`)
  }
  return lines.join(' \\\n  ')
}
