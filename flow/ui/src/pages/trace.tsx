// One flow: what it came to, what is wrong with it, and its waterfall.
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import type { Graph, Span, Trace } from '../api'
import { curl } from '../curl'
import { count, moment, ns, ofNanos, plural, shown } from '../format'
import { FlowGraph } from '../graph'
import { useKeys } from '../keys'
import { Answer, Copy, Findings, OutcomeMark, useAsk, Verdicts } from '../parts'
import { put, to } from '../route'
import { tree } from '../rows'
import { save } from '../save'
import { Waterfall, type Handle } from '../waterfall'

export function TracePage({ name, params }: { name: string; params: URLSearchParams }) {
  const asked = useAsk<Trace>('traces/' + encodeURIComponent(name.replace(/^flow-/, '')))
  return <>
    {!asked.value && <div class="page-head"><h1 tabIndex={-1}><a class="back" href={to('traces')}>Traces</a> Trace</h1></div>}
    <Answer of={asked} what="trace">{trace => <View trace={trace} params={params} again={asked.again} />}</Answer>
  </>
}

export function View({ trace, params, again }: { trace: Trace; params: URLSearchParams; again?: () => void }) {
  const laid = useMemo(() => tree(trace), [trace])
  const byId = laid.byId
  const [chosen, setChosen] = useState<number | undefined>(() => byId.get(params.get('span') ?? ''))
  const [graph, setGraph] = useState(false)
  const waterfall = useRef<Handle>(null)
  const choose = (at: number | undefined) => {
    setChosen(at)
    // A saved file has no address of its own to keep it in.
    if (again) put({ span: at === undefined ? undefined : trace.spans[at]?.spanId })
  }
  const jump = (spanId: string) => {
    const at = byId.get(spanId)
    if (at === undefined) return
    choose(at)
    waterfall.current?.show(at)
  }
  const services = useMemo(() => new Set(trace.spans.map(span => span.service.name)).size, [trace])
  const span = chosen === undefined ? undefined : trace.spans[chosen]
  useEffect(() => { if (chosen !== undefined) waterfall.current?.show(chosen) }, [])
  useKeys([
    ...(again ? [{ keys: 'v', does: 'Waterfall or graph', run: () => setGraph(now => !now) }] : []),
    { keys: 'Escape', does: 'Close the details', run: () => choose(undefined) },
  ])
  const heading = trace.operationName || laid.items[laid.roots[0] ?? -1]?.span.name || 'Trace'
  return <>
    <div class="page-head">
      <h1 tabIndex={-1}>{again && <a class="back" href={to('traces')}>Traces</a>} {heading}</h1>
      <div class="buttons">
        {again && <button type="button" aria-pressed={graph} onClick={() => setGraph(!graph)}>Graph</button>}
        {again && <button type="button" onClick={again}>Refresh</button>}
        {again && <button type="button" onClick={() => void save(trace)}>Save as HTML</button>}
      </div>
    </div>
    <dl class="facts">
      <div><dt>Status</dt><dd><OutcomeMark of={trace.status} /></dd></div>
      <div><dt>Duration</dt><dd>{ns(trace.duration)}</dd></div>
      <div><dt>Started</dt><dd>{moment(ofNanos(trace.startTime))}</dd></div>
      <div><dt>Spans</dt><dd>{count(trace.spans.length)}{laid.errors.length > 0 && <span class="bad">, {count(laid.errors.length)} failed</span>}</dd></div>
      <div><dt>Services</dt><dd>{services}</dd></div>
      {trace.metadata.environment && <div><dt>Environment</dt><dd>{trace.metadata.environment}</dd></div>}
      {trace.uiEvent && <div><dt>Began with</dt><dd>{trace.uiEvent}</dd></div>}
      <div class="id"><dt>Trace id</dt><dd><code>{trace.traceId}</code> <Copy text={() => trace.traceId} label="Copy the trace id" short="Copy" /></dd></div>
    </dl>
    {trace.doctor.length > 0 && <section class="panel wrong" aria-label="Doctor"><header class="panel-head"><h2>This trace is broken</h2></header><Verdicts of={trace.doctor} jump={jump} spans={id => byId.has(id)} /></section>}
    {trace.findings.length > 0 && <section class="panel" aria-label="Findings"><header class="panel-head"><h2>Findings</h2></header><Findings of={trace.findings} jump={jump} /></section>}
    {trace.duplicateSpans > 0 && <p class="soft">{plural(trace.duplicateSpans, 'span')} came twice and {trace.duplicateSpans === 1 ? 'was' : 'were'} left out.</p>}
    {graph && again ? <OfFlow id={trace.traceId} />
      : <div class={span ? 'split' : undefined}>
        <Waterfall tree={laid} trace={trace} chosen={chosen} choose={choose} handle={waterfall} />
        {span && <Details trace={trace} span={span} close={() => choose(undefined)} jump={jump} known={id => byId.has(id)} linked={!!again} />}
      </div>}
  </>
}

function OfFlow({ id }: { id: string }) {
  const asked = useAsk<{ graph: Graph }>('flows/' + id)
  return <Answer of={asked} what="graph">{({ graph }) => <FlowGraph graph={graph} title="Graph of this flow" />}</Answer>
}

function Attributes({ of, label }: { of: Record<string, unknown>; label: string }) {
  const pairs = Object.entries(of).sort(([one], [other]) => (one < other ? -1 : 1))
  if (!pairs.length) return <p class="soft">none</p>
  return <dl class="attributes" aria-label={label}>{pairs.map(([key, value]) => <div key={key}><dt>{key}</dt><dd>{shown(value)}</dd></div>)}</dl>
}

function Details({ trace, span, close, jump, known, linked }: { trace: Trace; span: Span; close: () => void; jump: (id: string) => void; known: (id: string) => boolean; linked: boolean }) {
  const command = useMemo(() => curl(trace, span), [span])
  return <aside class="details" aria-label="Span" tabIndex={0}>
    <header><h2>{span.name}</h2><button type="button" aria-label="Close" onClick={close}>✕</button></header>
    <dl class="facts small">
      <div><dt>Service</dt><dd>{linked ? <a href={to('services', span.service.name)}>{span.service.name}</a> : span.service.name}</dd></div>
      <div><dt>Kind</dt><dd>{span.kind}</dd></div>
      <div><dt>Duration</dt><dd>{ns(span.duration)}</dd></div>
      <div><dt>Begins</dt><dd>+{ns(Math.max(0, span.startTime - trace.startTime + (span.skew ?? 0)))}</dd></div>
      <div><dt>Status</dt><dd>{span.status === 'ERROR' ? <span class="bad">✕ error</span> : span.status === 'OK' ? 'ok' : 'no error'}</dd></div>
      <div><dt>Made by</dt><dd>{span.source || '–'}</dd></div>
      {span.service.pod && <div><dt>Pod</dt><dd>{span.service.pod}</dd></div>}
    </dl>
    {span.statusMessage && <p class="bad">{span.statusMessage}</p>}
    {span.note === 'orphan' && <p class="soft">Its parent {span.parentSpanId} is not in this trace.</p>}
    {span.note === 'cycle' && <p class="soft">Its parents lead back to it; it is shown by itself.</p>}
    {span.skew ? <p class="soft">Its clock differs: shown {ns(Math.abs(span.skew))} {span.skew > 0 ? 'later' : 'earlier'} than it says.</p> : null}
    <p class="actions">
      {command && <Copy text={() => command} label="Copy as curl" />}
      <Copy text={() => span.spanId} label="Copy the span id" />
      {span.parentSpanId && known(span.parentSpanId) && <button type="button" onClick={() => jump(span.parentSpanId!)}>Go to its parent</button>}
    </p>
    <h3>Attributes</h3>
    <Attributes of={span.attributes} label="Attributes" />
    {span.events.length > 0 && <><h3>Events</h3>{span.events.map((event, place) => <div class="event" key={place}><h4>{event.name} <small>+{ns(event.timestamp - trace.startTime)}</small></h4><Attributes of={event.attributes} label={`Attributes of ${event.name}`} /></div>)}</>}
    {span.links && span.links.length > 0 && <><h3>Links</h3><ul>{span.links.map(link => <li key={link.traceId + link.spanId}>{link.traceId === trace.traceId && known(link.spanId)
      ? <button type="button" onClick={() => jump(link.spanId)}>{link.spanId}</button>
      : <a href={to('traces', link.traceId, { span: link.spanId })}><code>{link.traceId.slice(0, 16)}…</code></a>}</li>)}</ul></>}
    <h3>Ids</h3>
    <dl class="attributes"><div><dt>span</dt><dd>{span.spanId}</dd></div>{span.parentSpanId && <div><dt>parent</dt><dd>{span.parentSpanId}</dd></div>}</dl>
  </aside>
}
