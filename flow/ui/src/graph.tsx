// A graph as the server laid it out: shape and colour say how a node does, the stroke says how an edge is known. The
// table beside it says the same in words.
import { useMemo, useRef, useState } from 'preact/hooks'
import type { Edge, Graph, Node } from './api'
import { count, latency, ms, percent, plural } from './format'
import { useKeys } from './keys'
import { HealthMark, Search, shape, Table } from './parts'
import { to } from './route'

const [WIDTH, HEIGHT, MARGIN] = [192, 54, 34]
/** Larger drawings begin as a whole. */
const [WIDE, HIGH] = [1180, 1000]

const KINDS: Record<string, string> = { service: '', user: 'callers', external: 'outside', topic: 'topic', subscription: 'subscription', database: 'database', other: 'others' }
const PROVENANCE: Record<string, string> = { proven: 'the called service reported', inferred: 'only the caller reported', async: 'messages', link: 'linked' }

const cut = (text: string, length: number) => (text.length > length ? text.slice(0, length - 1) + '…' : text)
const label = (node: Node) => (node.kind === 'topic' ? node.service.name || node.id.replace(/^topic:/, '') : node.service.name || node.id)

function lag(edge: Edge): string {
  const first = edge.lag?.[0]
  if (!first) return ''
  const value = first.p95 ?? first.avg
  // Ages of messages are whole milliseconds.
  return value > 0 ? `lag ${ms(value)}` : 'lag <1 ms'
}

/** A curve through the places, level at both ends. */
function path(points: [number, number][]): string {
  let text = `M${points[0]![0]} ${points[0]![1]}`
  for (let place = 1; place < points.length; place++) {
    const [[x0, y0], [x1, y1]] = [points[place - 1]!, points[place]!]
    const bend = Math.max(24, Math.abs(x1 - x0) / 2) * (x1 < x0 ? -1 : 1)
    text += `C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`
  }
  return text
}

function route(edge: Edge, from: [number, number], end: [number, number], middle: (place: [number, number]) => [number, number]): [number, number][] {
  const passes = (edge.passes ?? []).map(middle)
  const back = end[0] < from[0] || (end[0] === from[0] && !edge.passes?.length)
  const half = WIDTH / 2
  if (edge.from === edge.to) return [[from[0] + half, from[1]], [from[0] + half + 26, from[1] + 34], [from[0], from[1] + HEIGHT / 2 + 4]]
  return back
    ? [[from[0] - half, from[1] + 12], ...passes, [end[0] + half + 4, end[1] + 12]]
    : [[from[0] + half, from[1]], ...passes, [end[0] - half - 4, end[1]]]
}

const isBad = (edge: Edge) => edge.errorRate >= 0.05

/** Where an edge's label stands: in the gap between two columns, by the end that fewer edges share. */
function beside(points: [number, number][], leaving: number, coming: number): [number, number] {
  const [start, end] = [points[0]!, points[points.length - 1]!]
  if (end[0] < start[0]) {
    const place = Math.floor((points.length - 1) / 2)
    const [a, b] = [points[place]!, points[place + 1]!]
    return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]
  }
  if (points.length === 2 && leaving === 1 && coming === 1) return [(start[0] + end[0]) / 2, (start[1] + end[1]) / 2]
  const [above, below] = [0, 19]
  // On the side of the line to which it does not bend.
  return coming <= leaving
    ? [end[0] - 28, end[1] + (points[points.length - 2]![1] < end[1] ? below : above)]
    : [start[0] + 28, start[1] + (points[1]![1] < start[1] ? below : above)]
}

export function FlowGraph({ graph, title, link = true }: { graph: Graph; title: string; link?: boolean }) {
  const [asTable, setTable] = useState(false)
  const [search, setSearch] = useState('')
  const places = useMemo(() => new Map(graph.nodes.map(node => [node.id, node])), [graph])
  const names = useMemo(() => new Map(graph.nodes.map(node => [node.id, label(node)])), [graph])
  const frame = useRef<HTMLDivElement>(null)
  const [right, below] = graph.nodes.reduce(([x, y], { place: [a, b] = [0, 0] }) => [Math.max(x, a), Math.max(y, b)], [0, 0])
  const [width, height] = [right + WIDTH + 2 * MARGIN, below + HEIGHT + 2 * MARGIN]
  const [fits, setFits] = useState<boolean>()
  const whole = fits ?? (width > WIDE || height > HIGH)
  useKeys([
    { keys: 't', does: 'Graph or table', run: () => setTable(now => !now) },
    { keys: 'w', does: 'Whole graph or full size', run: () => setFits(!whole) },
  ])
  const found = search ? new Set(graph.nodes.filter(node => label(node).toLowerCase().includes(search.toLowerCase())).map(node => node.id)) : undefined
  const first = found && [...found][0]
  const near = (edge: Edge) => !found || found.has(edge.from) || found.has(edge.to)
  const middle = ([x, y]: [number, number]): [number, number] => [x + WIDTH / 2 + MARGIN, y + HEIGHT / 2 + MARGIN]
  const at = (id: string) => middle(places.get(id)?.place ?? [0, 0])
  const drawn = graph.edges.flatMap((edge, key) => (places.has(edge.from) && places.has(edge.to) ? [{ edge, key, points: route(edge, at(edge.from), at(edge.to), middle) }] : []))
  const [leaving, coming] = [new Map<string, number>(), new Map<string, number>()]
  for (const { edge } of drawn) {
    leaving.set(edge.from, (leaving.get(edge.from) ?? 0) + 1)
    coming.set(edge.to, (coming.get(edge.to) ?? 0) + 1)
  }
  const show = () => {
    if (!first || !frame.current) return
    const [x, y] = at(first)
    setFits(false)
    requestAnimationFrame(() => frame.current?.scrollTo({ left: x - frame.current.clientWidth / 2, top: y - frame.current.clientHeight / 2 }))
    frame.current.querySelector<SVGAElement>('.found a')?.focus()
  }
  return <section class="panel" aria-label={title}>
    <header class="panel-head">
      <h2>{title}</h2>
      <form class="inline" role="search" onSubmit={event => { event.preventDefault(); show() }}>
        <Search value={search} label="Find a service" onInput={setSearch} />
      </form>
      <div class="buttons">
        <button type="button" aria-pressed={whole} disabled={asTable} onClick={() => setFits(!whole)}>Fit</button>
        <button type="button" aria-pressed={asTable} onClick={() => setTable(!asTable)}>As table</button>
      </div>
    </header>
    {asTable ? <Twin graph={graph} names={names} search={search} link={link} /> : <>
      <div class="graph" ref={frame} tabIndex={0} role="region" aria-label={`${title}, drawing`}>
        <svg viewBox={`0 0 ${width} ${height}`} width={whole ? undefined : width} height={whole ? undefined : height} class={whole ? 'whole' : undefined} role="group" aria-label={`${plural(graph.nodes.length, 'node')}, ${plural(graph.edges.length, 'edge')}; the table says the same`}>
          <defs>{['line', 'bad'].map(name => <marker key={name} id={`arrow-${name}`} viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path class={`arrow ${name}`} d="M0 0L8 4L0 8z" /></marker>)}</defs>
          {drawn.map(({ edge, points, key }) => {
            const bad = isBad(edge)
            const line = path(points)
            return <g key={key} class={`edge ${edge.provenance}${bad ? ' bad' : ''}${near(edge) ? '' : ' dim'}`}>
              <path class="stroke" d={line} marker-end={`url(#arrow-${bad ? 'bad' : 'line'})`} />
              {edge.provenance === 'async' && <path class="core" d={line} />}
            </g>
          })}
          {graph.edges.length <= 150 && drawn.map(({ edge, points, key }) => {
            const said = lag(edge) || (edge.kind === 'request' && edge.avgLatency ? ms(edge.avgLatency) : '')
            // Where the topic is no node of its own, its name stands below the line.
            const topic = edge.topic && places.get(edge.from)?.kind !== 'topic' && places.get(edge.to)?.kind !== 'topic' ? cut(edge.topic, 14) : ''
            if (!said && !topic) return null
            const [x, y] = beside(points, leaving.get(edge.from) ?? 1, coming.get(edge.to) ?? 1)
            return <g key={key} class={`edge${near(edge) ? '' : ' dim'}`}>
              {topic && <text x={x} y={y + 17}>{topic}</text>}
              {said && <text x={x} y={y - 6}>{said}</text>}
            </g>
          })}
          {graph.nodes.map(node => {
            const [x, y] = at(node.id)
            const isService = node.kind === 'service'
            const dim = found && !found.has(node.id)
            const shown = cut(label(node), isService ? 19 : 21)
            const about = isService && !node.metrics.requestCount ? 'not called' : isService ? `${count(node.metrics.requestCount)} · ${latency(node.metrics.avgLatency)}${node.metrics.errorCount ? ` · ✕ ${percent(node.metrics.errorCount / Math.max(1, node.metrics.requestCount))}` : ''}` : KINDS[node.kind] ?? node.kind
            const body = <>
              {node.kind === 'topic' || node.kind === 'subscription'
                ? <rect class="box" width={WIDTH} height={HEIGHT} rx={HEIGHT / 2} />
                : <rect class="box" width={WIDTH} height={HEIGHT} rx="9" />}
              {isService && <Sign of={node} />}
              <text class="name" x={isService ? 34 : 16} y="23">{shown}</text>
              <text class="about" x={isService ? 34 : 16} y="41">{about}</text>
            </>
            const name = `${label(node)}, ${isService ? `${node.status}, ${plural(node.metrics.requestCount, 'request')}, average ${latency(node.metrics.avgLatency)}` : KINDS[node.kind]}`
            const classes = `node ${node.kind} ${isService ? node.status : ''}${dim ? ' dim' : ''}${node.id === first ? ' found' : ''}`
            const where = `translate(${x - WIDTH / 2} ${y - HEIGHT / 2})`
            return isService && link
              ? <g key={node.id} class={classes} transform={where}><title>{name}</title><a href={to('services', node.service.name, { namespace: node.service.namespace || undefined })}>{body}</a></g>
              : <g key={node.id} class={classes} transform={where} role="img" aria-label={name}><title>{name}</title>{body}</g>
          })}
        </svg>
      </div>
      <Legend />
    </>}
  </section>
}

function Sign({ of }: { of: Node }) {
  const said = { role: 'img', 'aria-label': of.status } as const
  if (of.status === 'down') return <path {...said} class="sign" d="M12 14l11 11M23 14l-11 11" />
  if (of.status === 'degraded') return <path {...said} class="sign" d="M17.5 12l7 13h-14z" />
  return <circle {...said} class="sign" cx="17.5" cy="19.5" r="6" />
}

function Legend() {
  return <ul class="legend">
    {(['healthy', 'degraded', 'down'] as const).map(health => <li key={health}><span class={`mark ${health}`} aria-hidden="true">{shape(health)}</span> {health}</li>)}
    {(['proven', 'inferred', 'async', 'link'] as const).map(kind => <li key={kind}>
      <svg width="34" height="8" aria-hidden="true"><g class={`edge ${kind}`}><path class="stroke" d="M0 4H34" />{kind === 'async' && <path class="core" d="M0 4H34" />}</g></svg> {PROVENANCE[kind]}
    </li>)}
  </ul>
}

function Twin({ graph, names, search, link }: { graph: Graph; names: Map<string, string>; search: string; link: boolean }) {
  const fits = (...texts: string[]) => !search || texts.some(text => text.toLowerCase().includes(search.toLowerCase()))
  const name = (id: string) => names.get(id) ?? id
  return <div class="twin">
    <h3>Services</h3>
    <Table caption="Services of the graph" keyOf={node => node.id} rows={graph.nodes.filter(node => fits(label(node)))}
      href={link ? node => (node.kind === 'service' ? to('services', node.service.name, { namespace: node.service.namespace || undefined }) : undefined) : undefined}
      columns={[
        { name: 'Name', sort: label, cell: label },
        { name: 'Kind', sort: node => node.kind, cell: node => KINDS[node.kind] || node.kind },
        { name: 'Health', sort: node => node.status, cell: node => (node.kind === 'service' ? <HealthMark of={node.status} /> : '–') },
        { name: 'Requests', number: true, sort: node => node.metrics.requestCount, cell: node => count(node.metrics.requestCount) },
        { name: 'Errors', number: true, sort: node => node.metrics.errorCount, cell: node => count(node.metrics.errorCount) },
        { name: 'Average', number: true, sort: node => node.metrics.avgLatency, cell: node => latency(node.metrics.avgLatency) },
        { name: 'p95', number: true, sort: node => node.metrics.p95Latency, cell: node => latency(node.metrics.p95Latency) },
      ]} />
    <h3>Calls and messages</h3>
    <Table caption="Edges of the graph" keyOf={edge => `${edge.from}\n${edge.to}\n${edge.kind}\n${edge.topic ?? ''}`} rows={graph.edges.filter(edge => fits(name(edge.from), name(edge.to)))}
      columns={[
        { name: 'From', sort: edge => name(edge.from), cell: edge => name(edge.from) },
        { name: 'To', sort: edge => name(edge.to), cell: edge => name(edge.to) },
        { name: 'What', sort: edge => edge.kind, cell: edge => edge.kind },
        { name: 'Known by', sort: edge => edge.provenance, cell: edge => PROVENANCE[edge.provenance] ?? edge.provenance },
        { name: 'Calls', number: true, sort: edge => edge.callCount, cell: edge => count(edge.callCount) },
        { name: 'Error rate', number: true, sort: edge => edge.errorRate, cell: edge => percent(edge.errorRate) },
        { name: 'Average', number: true, sort: edge => edge.avgLatency, cell: edge => latency(edge.avgLatency) },
        { name: 'Retries', number: true, sort: edge => edge.retryCount, cell: edge => count(edge.retryCount) },
        { name: 'Lag p95', number: true, cell: edge => lag(edge).replace('lag ', '') || '–' },
      ]} />
  </div>
}
