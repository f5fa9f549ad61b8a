// A real flow server, spans for it, and a real browser. Ends only what it started.
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'

const root = fileURLToPath(new URL('../../../', import.meta.url))
export const workspace = path => root + path
const ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run']

/** Chromium, as Debian installs it unless one is named. */
export const chromiumPath = process.env.THROUGHLINE_TEST_CHROMIUM ?? '/usr/bin/chromium'
export const launch = () => chromium.launch({ executablePath: chromiumPath, headless: true, args: ARGS })

/** A flow server with all in memory; at ports of its own choice, or again at those of another. */
export async function server({ api = '127.0.0.1:0', otlp_http = '127.0.0.1:0' } = {}) {
  const binary = process.env.THROUGHLINE_TEST_FLOW ?? workspace('target/quick/throughline-flow')
  if (!existsSync(binary)) throw new Error(`no flow server at ${binary}: cargo build --profile quick -p throughline-flow`)
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(THROUGHLINE|OTEL)_/.test(name)))
  const child = spawn(binary, [], {
    env: { ...env, THROUGHLINE_FLOW_LISTEN: api, THROUGHLINE_FLOW_OTLP_HTTP: otlp_http, THROUGHLINE_FLOW_OTLP_GRPC: 'off', THROUGHLINE_FLOW_MEMORY_ONLY: 'on', THROUGHLINE_FLOW_DRAIN_TIMEOUT: '1000' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const heard = []
  const ready = new Promise((found, failed) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', line => {
        heard.push(line)
        try {
          const told = JSON.parse(line)
          if (told.message === 'ready') found(told)
        } catch { /* no line of the log */ }
      })
    }
    child.on('exit', code => failed(new Error(`the flow server ended with ${code}: ${heard.join('\n')}`)))
  })
  const told = await ready
  const url = `http://${told.api}`
  return {
    url,
    told,
    /** Sends resource spans, in requests of a size that the server takes. */
    async send(resources) {
      for (let at = 0; at < resources.length; at += 50) {
        const answer = await fetch(`http://${told.otlp_http}/v1/traces`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ resourceSpans: resources.slice(at, at + 50) }) })
        const text = await answer.text()
        if (!answer.ok || /rejected/.test(text)) throw new Error(`spans refused: ${answer.status} ${text}`)
      }
    },
    async get(path) { return (await fetch(`${url}/api/v1/${path}`)).json() },
    /** Waits until an answer is as wanted. */
    async until(path, wanted) {
      const end = Date.now() + 30_000
      for (;;) {
        const answer = await this.get(path)
        if (wanted(answer)) return answer
        if (Date.now() > end) throw new Error(`${path} did not come to be: ${JSON.stringify(answer).slice(0, 500)}`)
        await new Promise(done => setTimeout(done, 100))
      }
    },
    async stop(signal = 'SIGTERM') {
      if (child.exitCode !== null || child.signalCode !== null) return
      const ended = new Promise(done => child.once('exit', done))
      child.kill(signal)
      await ended
    },
  }
}

export const hex = bytes => randomBytes(bytes).toString('hex')
const value = of => (typeof of === 'number' ? { intValue: String(of) } : typeof of === 'boolean' ? { boolValue: of } : { stringValue: String(of) })
const attributes = of => Object.entries(of).map(([key, one]) => ({ key, value: value(one) }))
const KINDS = { internal: 1, server: 2, client: 3, producer: 4, consumer: 5 }

/** One span, at microseconds after `base` milliseconds, as the resource that it belongs to. */
export function span({ trace, id = hex(8), parent, name, kind = 'server', service, base, at = 0, took = 1000, error = false, message, links = [], events = [], env = 'prod', namespace = 'shop', version = '1.4.2', ours = false, ...of }) {
  const start = BigInt(Math.round(base * 1000) + Math.round(at)) * 1000n
  return {
    resource: { attributes: attributes({ 'service.name': service, 'service.namespace': namespace, 'service.version': version, 'deployment.environment.name': env, 'k8s.pod.name': `${service}-7d9f-x2k4`, 'k8s.node.name': 'node-1' }) },
    scopeSpans: [{
      scope: { name: ours ? 'throughline' : 'opentelemetry-http' },
      spans: [{
        traceId: trace, spanId: id, ...(parent ? { parentSpanId: parent } : {}), name, kind: KINDS[kind],
        startTimeUnixNano: String(start), endTimeUnixNano: String(start + BigInt(Math.round(took)) * 1000n),
        status: error ? { code: 2, ...(message ? { message } : {}) } : {},
        attributes: attributes(of.attributes ?? {}),
        links: links.map(([traceId, spanId]) => ({ traceId, spanId, attributes: [] })),
        events: events.map(([name, at, told]) => ({ name, timeUnixNano: String(start + BigInt(at) * 1000n), attributes: attributes(told) })),
      }],
    }],
  }
}

/** A call: the caller's client span and the callee's server span. Gives the server span's id. */
function call(out, { trace, parent, from, to, name, operation, base, at, took, error = false, status = 200, extra = {} }) {
  const [method, route] = name.split(' ')
  const client = hex(8), serving = hex(8)
  const common = { 'http.request.method': method, 'http.response.status_code': status, 'app.operation.name': operation, ...(error ? { 'error.type': String(status) } : {}) }
  out.push(span({ trace, id: client, parent, name, kind: 'client', service: from, base, at, took, error, attributes: { ...common, 'server.address': to, 'server.port': 8080, 'url.full': `http://${to}:8080${route}?q=lamp&token=abc`, 'throughline.peer.service': to, 'throughline.peer.namespace': 'shop', ...extra } }))
  out.push(span({ trace, id: serving, parent: client, name, kind: 'server', service: to, base, at: at + took * 0.04, took: took * 0.92, error, attributes: { ...common, 'http.route': route, 'url.path': route, 'throughline.peer.service': from, 'throughline.peer.namespace': 'shop' } }))
  return serving
}

function begin(out, { trace, name, operation, base, took, error = false, status = 200, event = 'button_click' }) {
  const [method, route] = name.split(' ')
  const ui = hex(8), fetch = hex(8), web = hex(8)
  out.push(span({ trace, id: ui, name: operation, kind: 'internal', service: 'shop-ui', base, at: 0, took, error, attributes: { 'app.operation.name': operation, 'ui.event': event, 'session.id': 's-81' } }))
  out.push(span({ trace, id: fetch, parent: ui, name, kind: 'client', service: 'shop-ui', base, at: took * 0.01, took: took * 0.97, error, attributes: { 'http.request.method': method, 'http.response.status_code': status, 'server.address': 'shop.example.com', 'app.operation.name': operation, ...(error ? { 'error.type': String(status) } : {}) } }))
  out.push(span({ trace, id: web, parent: fetch, name, kind: 'server', service: 'web', base, at: took * 0.03, took: took * 0.94, error, attributes: { 'http.request.method': method, 'http.route': route, 'url.path': route, 'url.scheme': 'https', 'server.address': 'shop.example.com', 'http.response.status_code': status, 'app.operation.name': operation, 'http.request.header.authorization': 'Bearer abcdef', ...(error ? { 'error.type': String(status) } : {}) } }))
  return web
}

/** The shop's operations, `times` of them over the last minutes. */
export function shop(times = 40) {
  const out = [], traces = {}
  const now = Date.now()
  let seed = 11
  const draw = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648
  for (let turn = 0; turn < times; turn++) {
    const base = now - 90_000 - turn * 31_000
    const wide = 0.75 + draw() * 0.6
    {
      const trace = (traces.login ??= hex(16), turn ? hex(16) : traces.login)
      const took = 96_000 * wide
      const web = begin(out, { trace, name: 'POST /login', operation: 'login', base, took, event: 'form_submit' })
      const auth = call(out, { trace, parent: web, from: 'web', to: 'auth', name: 'POST /sessions', operation: 'login', base, at: took * 0.08, took: took * 0.8 })
      const users = call(out, { trace, parent: auth, from: 'auth', to: 'users', name: 'GET /users/{id}', operation: 'login', base, at: took * 0.2, took: took * 0.45 })
      out.push(span({ trace, parent: users, name: 'SELECT users', kind: 'client', service: 'users', base, at: took * 0.32, took: took * 0.2, attributes: { 'db.system.name': 'postgresql', 'db.query.text': 'SELECT * FROM users WHERE id = $1', 'server.address': 'users-db', 'app.operation.name': 'login' } }))
    }
    {
      const fails = turn % 9 === 4
      const trace = fails ? (traces.failing ??= hex(16), turn === 4 ? traces.failing : hex(16)) : (traces.checkout ??= hex(16), turn ? hex(16) : traces.checkout)
      const took = 240_000 * wide, status = fails ? 502 : 201
      const web = begin(out, { trace, name: 'POST /checkout', operation: 'checkout', base: base + 7000, took, error: fails, status })
      const orders = call(out, { trace, parent: web, from: 'web', to: 'orders', name: 'POST /orders', operation: 'checkout', base: base + 7000, at: took * 0.06, took: took * 0.86, error: fails, status })
      const stock = call(out, { trace, parent: orders, from: 'orders', to: 'stock', name: 'POST /reservations', operation: 'checkout', base: base + 7000, at: took * 0.12, took: took * 0.25, status: 201 })
      call(out, { trace, parent: stock, from: 'stock', to: 'warehouse', name: 'POST /picks', operation: 'checkout', base: base + 7000, at: took * 0.17, took: took * 0.14, status: 201 })
      for (let attempt = 0; attempt < (fails ? 3 : 1); attempt++) {
        call(out, { trace, parent: orders, from: 'orders', to: 'payments', name: 'POST /payments', operation: 'checkout', base: base + 7000, at: took * (0.4 + attempt * 0.14), took: took * 0.12, error: fails, status: fails ? 503 : 201, extra: attempt ? { 'http.request.resend_count': attempt } : {} })
      }
      if (!fails) {
        const publish = hex(8), take = hex(8)
        out.push(span({ trace, id: publish, parent: orders, name: 'send orders', kind: 'producer', service: 'orders', base: base + 7000, at: took * 0.62, took: took * 0.08, attributes: { 'messaging.system': 'gcp_pubsub', 'messaging.destination.name': 'orders', 'messaging.operation.type': 'send', 'app.operation.name': 'checkout' } }))
        out.push(span({ trace, id: take, parent: publish, name: 'process shipping', kind: 'consumer', service: 'shipping', base: base + 7000, at: took * 1.05, took: took * 0.4, links: [[trace, publish]], attributes: { 'messaging.system': 'gcp_pubsub', 'messaging.destination.name': 'orders', 'messaging.destination.subscription.name': 'shipping', 'messaging.operation.type': 'process', 'throughline.message.age_ms': Math.round(took * 0.00035), 'app.operation.name': 'checkout' } }))
        call(out, { trace, parent: take, from: 'shipping', to: 'warehouse', name: 'POST /parcels', operation: 'checkout', base: base + 7000, at: took * 1.15, took: took * 0.2, status: 201 })
      }
    }
    {
      const trace = (traces.search ??= hex(16), turn ? hex(16) : traces.search)
      const took = 620_000 * wide
      const web = begin(out, { trace, name: 'GET /search', operation: 'search', base: base + 12_000, took, event: 'form_submit' })
      const stock = call(out, { trace, parent: web, from: 'web', to: 'stock', name: 'GET /items', operation: 'search', base: base + 12_000, at: took * 0.05, took: took * 0.88 })
      for (let item = 0; item < 12; item++) call(out, { trace, parent: stock, from: 'stock', to: 'warehouse', name: 'GET /shelves/{id}', operation: 'search', base: base + 12_000, at: took * (0.1 + item * 0.065), took: took * 0.055 })
    }
    if (turn % 4 === 0) {
      const trace = hex(16), lost = turn ? hex(16) : (traces.dropped ??= hex(16))
      const web = begin(out, { trace, name: 'GET /recommendations', operation: 'recommend', base: base + 19_000, took: 140_000 })
      const serving = call(out, { trace, parent: web, from: 'web', to: 'recommender', name: 'GET /picks', operation: 'recommend', base: base + 19_000, at: 8000, took: 120_000 })
      const client = hex(8)
      out.push(span({ trace: lost, id: client, name: 'GET /prices', kind: 'client', service: 'recommender', ours: true, base: base + 19_000, at: 30_000, took: 40_000, links: [[trace, serving]], attributes: { 'http.request.method': 'GET', 'http.response.status_code': 200, 'http.route': '/prices', 'server.address': 'warehouse', 'throughline.peer.service': 'warehouse', 'throughline.peer.namespace': 'shop', 'app.operation.name': 'recommend' } }))
      out.push(span({ trace: lost, parent: client, name: 'GET /prices', kind: 'server', service: 'warehouse', base: base + 19_000, at: 32_000, took: 36_000, attributes: { 'http.request.method': 'GET', 'http.response.status_code': 200, 'http.route': '/prices', 'throughline.peer.service': 'recommender', 'throughline.peer.namespace': 'shop', 'app.operation.name': 'recommend' } }))
    }
  }
  return { spans: out, traces }
}

/** One trace of so many spans, of 12 services, deep and wide, with failures. */
export function large(trace, spans = 10_000, base = Date.now() - 60_000) {
  const out = []
  const ids = []
  const times = []
  let seed = 5
  const draw = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648
  for (let at = 0; at < spans; at++) {
    const id = hex(8)
    // Phases of a hundred spans, one after the other; in each of them a tree.
    const phase = Math.floor((at - 1) / 100), inPhase = (at - 1) % 100
    const above = at === 0 ? -1 : inPhase === 0 ? 0 : phase * 100 + 1 + Math.floor(inPhase * draw() * (draw() < 0.5 ? 1 : 0.3))
    const [from, until] = above < 0 ? [0, 4_000_000] : times[above]
    const slice = ((until - from) * 100) / spans
    const start = at && inPhase === 0 ? from + phase * slice : from + (until - from) * draw() * 0.5
    const end = at && inPhase === 0 ? start + slice * 0.97 : start + (until - start) * (0.3 + draw() * 0.65)
    ids.push(id)
    times.push([start, end])
    const failed = at % 997 === 400
    out.push(span({ trace, id, parent: ids[above], name: `GET /things/{id}/part-${at % 613}`, kind: at % 2 ? 'client' : 'server', service: `service-${above < 0 ? 0 : (above * 7 + at) % 12}`, base, at: start, took: end - start, error: failed, attributes: { 'http.request.method': 'GET', 'http.response.status_code': failed ? 500 : 200, 'url.path': `/things/${at}/part`, 'server.address': 'things.svc', 'app.operation.name': 'rebuild_index', 'net.sock.peer': '10.0.3.9', 'thread.id': at % 31 } }))
  }
  // One resource for all spans of a service, as exporters send them.
  const byService = new Map()
  for (const one of out) {
    const key = JSON.stringify(one.resource)
    if (!byService.has(key)) byService.set(key, one)
    else byService.get(key).scopeSpans[0].spans.push(...one.scopeSpans[0].spans)
  }
  return [...byService.values()]
}

/** An operation that touches so many services. */
export function wide(services = 1000) {
  const trace = hex(16), base = Date.now() - 120_000
  const out = [span({ trace, id: '00000000000000ff', name: 'GET /all', kind: 'server', service: 'edge', base, took: 900_000, attributes: { 'app.operation.name': 'fan_out', 'http.request.method': 'GET', 'http.route': '/all', 'http.response.status_code': 200 } })]
  const serving = ['00000000000000ff'], names = ['edge']
  for (let place = 1; place < services; place++) {
    const above = Math.floor((place - 1) / 6)
    const name = `svc-${String(place).padStart(4, '0')}`
    serving.push(call(out, { trace, parent: serving[above], from: names[above], to: name, name: 'GET /part', operation: 'fan_out', base, at: 1000 + place * 40, took: 600_000 / (1 + Math.log2(place + 1)) - place * 20 > 500 ? 600_000 / (1 + Math.log2(place + 1)) - place * 20 : 500 }))
    names.push(name)
  }
  return { trace, spans: out }
}
