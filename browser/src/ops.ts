/*! throughline ops, Apache-2.0 */
// Names what a user does and carries the name, with a trace of its own, on the requests that come of it. Tells of it
// when it is over. Must never change what the page asks or gets: no body is read, no answer is touched, no error of
// ours reaches the page. No eval, nothing inline: it works under `default-src 'self'`.
// Names with a leading underscore are shortened by the build.

/** What the user did. */
export type UiEvent = 'button_click' | 'link_click' | 'form_submit' | 'route_change' | 'custom'

/** One thing that the user does, from the gesture until its last request is over. */
export interface Operation {
  /** Its name as it is sent: what a header may not hold became `_`. */
  readonly name: string
  /** The trace, 32 hexadecimal digits. */
  readonly traceId: string
  /** As `fetch`, and part of this operation whatever else began meanwhile. */
  fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response>
  /** The headers for a client of your own, which neither uses `fetch` nor `XMLHttpRequest` of this page. */
  headers(): Record<string, string>
}

/** What may be set. */
export interface Options {
  /** Other origins that get the headers, each as `https://api.example.com`. Compared as a whole. None by default. */
  origins?: string[] | undefined
  /** Whether full-page navigations and native forms carry the operation by a cookie of ten seconds. */
  cookie?: boolean | undefined
  /** Where the spans are sent to; same origin. */
  endpoint?: string | undefined
}

interface Span {
  traceId: string
  spanId: string
  parentSpanId?: string
  name: string
  kind: number
  startTimeUnixNano: string
  endTimeUnixNano?: string
  attributes: unknown[]
  status?: { code: number }
}

interface Op extends Operation {
  _root: Span
  _children: Span[]
  /** What is under way. */
  _busy: number
  /** When the last of it ended. */
  _last: number
  /** Whether the gateway has heard of the trace: it takes no span of another one. */
  _asked?: boolean
  /** Whether the page is being left for where the operation leads. */
  _leads?: boolean
  _error?: string | undefined
  _idle?: ReturnType<typeof setTimeout>
  _cap?: ReturnType<typeof setTimeout>
  _done?: boolean
}

/** An operation stays current until nothing of it was under way for so long, in milliseconds. */
const IDLE = 100
/** The longest that it stays current by itself; with a promise of the page's own, the longest that this may take. */
const WINDOW = 1e4
const PROMISE = 3e5
/** Requests with a span of their own; the parent of further ones is the operation's. */
const CHILDREN = 30

const TRACEPARENT = 'traceparent'
const NAME = 'x-operation-name'
const BAGGAGE = 'baggage'
const KEY = 'app.operation.name'

let now: Op | undefined
const open = new Set<Op>()
let native: typeof fetch
let trusted: string[]
let cookies: boolean
let endpoint: string

const hex = (bytes: number) =>
  Array.from(crypto.getRandomValues(new Uint8Array(bytes)), byte => byte.toString(16).padStart(2, '0')).join('')
const clock = () => performance.now()
// Microseconds are a number that is exact; nanoseconds would not be.
const nanos = (at: number) => Math.round((Date.now() - clock() + at) * 1e3) + '000'
const pairs = (all: Record<string, string | number | undefined>) =>
  Object.entries(all).flatMap(([key, value]) =>
    value ? [{ key, value: value === +value ? { intValue: value } : { stringValue: value } }] : []
  )

const cookie = (value: string, age: number) => {
  try {
    if (cookies)
      document.cookie =
        `_tl_op=${value};Path=/;Max-Age=${age};SameSite=Strict` + (location.protocol == 'https:' ? ';Secure' : '')
  } catch {
    // a page in a sandbox has no cookies
  }
}

const context = (op: Op, span: Span) => `00-${op.traceId}-${span.spanId}-01`

const begin = (named: string, event: UiEvent, attribution: string): Op => {
  const start = clock()
  const name = named.replace(/[^!#-+\--:<>-[\]-~]/g, '_').slice(0, 128) || '_'
  const traceId = hex(16)
  const op: Op = {
    name,
    traceId,
    fetch: (input, init) => ask(op, input, init),
    headers: () => {
      const all: Record<string, string> = {}
      tell(op, op._root, () => false, (key, value) => (all[key] = value))
      return all
    },
    _root: {
      traceId,
      spanId: hex(8),
      name,
      kind: 1,
      startTimeUnixNano: nanos(start),
      attributes: pairs({
        'ui.event': event,
        [KEY]: name,
        'app.operation.attribution': attribution,
        'url.path': location.pathname,
      }),
    },
    _children: [],
    _busy: 0,
    _last: start,
  }
  open.add((now = op))
  cookie(context(op, op._root) + '~' + name, 10)
  cap(op, WINDOW)
  hold(op)()
  return op
}

const cap = (op: Op, after: number) => {
  clearTimeout(op._cap)
  op._cap = setTimeout(finish, after, op)
}

/** Something of the operation is under way until what this returns is called. */
const hold = (op: Op) => {
  op._busy++
  clearTimeout(op._idle)
  return () => {
    op._last = clock()
    if (!--op._busy) op._idle = setTimeout(finish, IDLE, op)
  }
}

const finish = (op: Op, bye?: boolean) => {
  if (op._done) return
  op._done = true
  open.delete(op)
  clearTimeout(op._cap)
  if (now == op) {
    now = undefined
    if (!bye) cookie('', 0)
  }
  if (!op._asked) return
  const root = op._root
  const busy = op._busy - +!!op._leads
  close(root, {
    'ui.result': op._error ? 'error' : bye && busy ? 'abandoned' : 'ok',
    'error.type': op._error,
  }, busy || bye ? clock() : op._last)
  op._children.forEach(child => child.endTimeUnixNano || close(child, {}))
  const spans = [root, ...op._children]
  const body = JSON.stringify({
    resourceSpans: [
      { resource: { attributes: pairs({ 'throughline.sent': Date.now() }) }, scopeSpans: [{ spans }] },
    ],
  })
  const type = 'application/json'
  if (bye) navigator.sendBeacon(endpoint, new Blob([body], { type }))
  else
    native(endpoint, { method: 'POST', body, headers: { 'content-type': type }, keepalive: true }).catch(() => {})
}

const close = (
  span: Span | undefined,
  all: Record<string, string | number | undefined>,
  at = clock()
) => {
  if (!span || span.endTimeUnixNano) return
  span.endTimeUnixNano = nanos(at)
  span.attributes.push(...pairs(all))
  if (all['error.type']) span.status = { code: 2 }
}

/** A request is answered, or failed with an error of this name. */
const answered = (op: Op, child: Span | undefined, status: number, error?: string) => {
  const code = status >= 500 ? '' + status : error
  op._error = op._error || code
  close(child, {
    'http.response.status_code': status,
    'error.type': status >= 400 ? '' + status : error,
  })
}

const where = (url: string | URL) => new URL(url, document.baseURI)

/** Whether requests to this address get the headers; a `blob:` has an origin too. */
const allowed = ({ protocol, origin }: URL) => /^http/.test(protocol) && trusted.includes(origin)

/** Puts on a request what it has not got yet. */
const tell = (op: Op, span: Span, has: (name: string) => unknown, add: (name: string, value: string) => void) => {
  if (!has(TRACEPARENT)) {
    add(TRACEPARENT, context(op, span))
    op._asked = true
  }
  if (!has(NAME)) add(NAME, op.name)
  add(BAGGAGE, `${KEY}=${encodeURIComponent(op.name)}`)
}

/** As above, with a span for the request where there is room and the request has no context of its own. */
const tag = (
  op: Op,
  method: string,
  url: URL,
  has: (name: string) => unknown,
  add: (name: string, value: string) => void
): Span | undefined => {
  let child: Span | undefined
  if (!has(TRACEPARENT) && op._children.length < CHILDREN && !op._done) {
    child = {
      traceId: op.traceId,
      spanId: hex(8),
      parentSpanId: op._root.spanId,
      name: method,
      kind: 3,
      startTimeUnixNano: nanos(clock()),
      attributes: pairs({
        'http.request.method': method,
        'url.path': url.pathname,
        'server.address': url.hostname,
        'server.port': +url.port,
      }),
    }
    op._children.push(child)
  }
  tell(op, child || op._root, has, add)
  return child
}

const ask = (op: Op | undefined, input: RequestInfo | URL, init?: RequestInit): Promise<Response> => {
  if (!op) return native(input, init)
  let child: Span | undefined
  const done = hold(op)
  try {
    const of = input as Request
    const isRequest = input instanceof Request
    const url = where(isRequest ? of.url : input as string)
    if (allowed(url) && ((init && init.mode) || (isRequest && of.mode)) != 'no-cors') {
      // A copy, as the browser makes one itself: what else was set stays.
      const copy = new Request(input, init)
      input = copy
      init = undefined
      child = tag(op, copy.method, url, name => copy.headers.has(name), (name, value) => copy.headers.append(name, value))
    }
  } catch {
    // What is wrong with the request, the browser says itself.
  }
  return native(input, init).then(
    response => {
      answered(op, child, response.status)
      // Whoever reads the body for long goes on with the operation afterwards.
      for (const way of ['json', 'text', 'blob', 'arrayBuffer', 'formData'] as const) {
        const read = response[way]
        response[way] = () => read.call(response).finally(hold(op)) as Promise<never>
      }
      done()
      return response
    },
    error => {
      answered(op, child, 0, error.name)
      done()
      throw error
    }
  )
}

const patch = () => {
  native = fetch.bind(window)
  window.fetch = (input, init) => ask(now, input, init)

  const known = new WeakMap<XMLHttpRequest, { _method: string; _url: string; _set: Set<string> }>()
  const xhr = XMLHttpRequest.prototype
  const { open, send, setRequestHeader } = xhr
  xhr.open = function (method: string, url: string | URL) {
    known.set(this, { _method: method.toUpperCase(), _url: '' + url, _set: new Set() })
    return open.apply(this, arguments as never)
  }
  xhr.setRequestHeader = function (name, value) {
    setRequestHeader.call(this, name, value)
    known.get(this)?._set.add(name.toLowerCase())
  }
  xhr.send = function (body) {
    const op = now
    const request = known.get(this)
    if (op && request)
      try {
        const url = where(request._url)
        const add = (name: string, value: string) => setRequestHeader.call(this, name, value)
        const child = allowed(url) ? tag(op, request._method, url, name => request._set.has(name), add) : undefined
        const done = hold(op)
        this.addEventListener(
          'loadend',
          () => {
            answered(op, child, this.status, this.status ? undefined : 'NetworkError')
            done()
          },
          { once: true }
        )
      } catch {
        // What is wrong with the request, the browser says itself.
      }
    send.call(this, body)
  }
}

const listen = () => {
  const on = (type: string, listener: (event: never) => void) => addEventListener(type, listener as never, true)
  const named = (element: EventTarget | null | undefined) => (element as HTMLElement | null)?.dataset?.operation
  on('click', (event: Event) => {
    const element = event.composedPath().find(named) as HTMLElement | undefined
    // A form begins when it is submitted.
    if (element && element.tagName != 'FORM')
      begin(named(element)!, element.tagName == 'A' ? 'link_click' : 'button_click', 'window')
  })
  on('submit', (event: SubmitEvent) => {
    const name = named(event.target)
    // The click on a button with a name of its own has begun it.
    if (name && !named(event.submitter)) begin(name, 'form_submit', 'window')
  })
  on('beforeunload', () => {
    if (now && !now._leads) {
      now._leads = now._asked = true
      hold(now)
    }
  })
  on('pagehide', () => open.forEach(op => finish(op, true)))
}

/** The operation that requests are part of at this moment, if there is one. */
export const current = (): Operation | undefined => now

/**
 * Runs `body` as an operation. It lasts as long as the promise that `body` returns, and as its requests. Where two
 * overlap, `fetch` of the argument says which one a request belongs to.
 */
export const op = <T>(name: string, body: (operation: Operation) => T, event: UiEvent = 'custom'): T => {
  const op = begin(name, event, 'explicit')
  const done = hold(op)
  const failed = (error: { name?: string } | undefined) => {
    op._error = (error && error.name) || 'Error'
    done()
    throw error
  }
  try {
    const result = body(op) as unknown as Promise<unknown>
    if (result && typeof result.then == 'function') {
      cap(op, PROMISE)
      return result.then(value => (done(), value), failed) as unknown as T
    }
    done()
    return result as unknown as T
  } catch (error) {
    return failed(error as Error)
  }
}

/** Starts listening, once for a page. */
export const init = (options: Options = {}): void => {
  const page = window as { throughline?: unknown }
  if (page.throughline) return
  page.throughline = { op, current }
  trusted = [location.origin, ...(options.origins || [])]
  cookies = options.cookie !== false
  endpoint = options.endpoint || '/_throughline/v1/traces'
  cookie('', 0) // whoever led here is here
  patch()
  listen()
}
