// Services: how each does, who calls it and whom it calls, and whether it hands the context on.
import type { Graph, Operation, ServiceDetails, ServiceInList } from '../api'
import { query } from '../api'
import { ago, count, latency, percent, plural } from '../format'
import { FlowGraph } from '../graph'
import { Answer, Cards, Empty, Filters, HealthMark, Search, since, Start, Table, useAsk, Verdicts } from '../parts'
import { put, to } from '../route'
import { Rate } from './operations'

export function ServicesPage({ params }: { params: URLSearchParams }) {
  const environment = params.get('environment') ?? ''
  const filter = query({ startTime: since(params), environment })
  const asked = useAsk<{ services: ServiceInList[] }>('services' + filter, true)
  const graph = useAsk<Graph>('dependencies' + filter)
  const operations = useAsk<{ operations: Operation[] }>('operations' + query({ startTime: since(params) }))
  const environments = [...new Set([environment, ...(operations.value?.operations ?? []).map(row => row.environment)])].filter(Boolean).sort()
  const search = params.get('q') ?? ''
  return <>
    <div class="page-head"><h1 tabIndex={-1}>Services</h1><button type="button" onClick={() => { asked.again(); graph.again() }}>Refresh</button></div>
    <Filters params={params} of={[{ key: 'environment', label: 'Environment', all: 'All', values: environments }]}>
      <Search value={search} label="Find in the list" onInput={q => put({ q })} />
    </Filters>
    <Answer of={asked} what="services">{({ services }) => {
      const shown = services.filter(row => `${row.name} ${row.namespace}`.toLowerCase().includes(search.toLowerCase()))
      if (services.length === 0) return <Start />
      if (shown.length === 0) return <Empty title="No service has this in its name"><p>Clear the search, or choose another environment or time range.</p></Empty>
      return <Table caption="Services" rows={shown} keyOf={row => `${row.name}\n${row.namespace}\n${row.environment}`} href={row => to('services', row.name, { namespace: row.namespace || undefined })} columns={[
        { name: 'Service', sort: row => row.name, cell: row => row.name },
        { name: 'Health', sort: row => ['healthy', 'degraded', 'down'].indexOf(row.status), cell: row => <HealthMark of={row.status} /> },
        { name: 'Requests', number: true, sort: row => row.metrics.requestCount, cell: row => count(row.metrics.requestCount) },
        { name: 'Error rate', number: true, sort: row => row.metrics.errorRate, cell: row => <Rate of={row.metrics.errorRate} /> },
        { name: 'Average', number: true, sort: row => row.metrics.avgLatency, cell: row => latency(row.metrics.avgLatency) },
        { name: 'p95', number: true, sort: row => row.metrics.p95Latency, cell: row => latency(row.metrics.p95Latency) },
        { name: 'Namespace', sort: row => row.namespace, cell: row => row.namespace || '–' },
        { name: 'Pods', number: true, sort: row => row.podCount, cell: row => count(row.podCount) },
        { name: 'Version', sort: row => row.version, cell: row => row.version || '–' },
        { name: 'Last seen', sort: row => row.lastSeen, cell: row => ago(row.lastSeen) },
      ]} />
    }}</Answer>
    <Answer of={graph} what="dependencies">{graph => graph.nodes.length > 0 && <FlowGraph graph={graph} title="Who calls whom" />}</Answer>
  </>
}

export function ServicePage({ name, params }: { name: string; params: URLSearchParams }) {
  const namespace = params.get('namespace') ?? ''
  const environment = params.get('environment') ?? ''
  const filter = query({ startTime: since(params), environment, namespace })
  const asked = useAsk<{ service: ServiceDetails }>('services/' + encodeURIComponent(name) + filter, true)
  const graph = useAsk<Graph>('dependencies' + query({ startTime: since(params), environment, namespace, service: name }))
  const known = new Set((graph.value?.nodes ?? []).filter(node => node.kind === 'service').map(node => node.id))
  return <>
    <div class="page-head">
      <h1 tabIndex={-1}><a class="back" href={to('services')}>Services</a> {name}</h1>
      <a class="button" href={to('traces', '', { service: name })}>Its traces</a>
    </div>
    <Filters params={params} of={[{ key: 'environment', label: 'Environment', all: 'All', values: [environment].filter(Boolean) }]} />
    <Answer of={asked} what="service">{({ service }) => <>
      <Cards of={[
        { name: 'Health', value: service.status, note: [service.namespace, service.environment, service.version && `version ${service.version}`].filter(Boolean).join(', '), bad: service.status === 'down' },
        { name: 'Requests', value: count(service.metrics.requestCount), note: `${service.metrics.requestRate.toFixed(service.metrics.requestRate < 10 ? 2 : 0)} a second` },
        { name: 'Error rate', value: percent(service.metrics.errorRate), note: `${count(service.metrics.errorCount)} failed`, bad: service.metrics.errorRate >= 0.05 },
        { name: 'Average latency', value: latency(service.metrics.avgLatency), note: `p50 ${latency(service.metrics.p50Latency)}, p95 ${latency(service.metrics.p95Latency)}` },
      ]} />
      {service.doctor.length > 0 && <section class="panel"><header class="panel-head"><h2>What the Doctor says</h2></header><Verdicts of={service.doctor} /></section>}
      <div class="columns">
        <Links title="Called by" of={service.dependencies.upstream} known={known} />
        <Links title="Calls" of={service.dependencies.downstream} known={known} />
      </div>
      {service.propagation.length > 0 && <section class="panel"><header class="panel-head"><h2>Context by route</h2></header><Scores of={service.propagation} /></section>}
      {service.pods.length > 0 && <section class="panel"><header class="panel-head"><h2>{plural(service.pods.length, 'pod')}</h2></header>
        <Table caption="Pods" rows={service.pods} keyOf={row => row.name} columns={[
          { name: 'Pod', sort: row => row.name, cell: row => row.name || '–' },
          { name: 'Node', sort: row => row.node, cell: row => row.node || '–' },
          { name: 'Status', sort: row => row.status, cell: row => row.status },
          { name: 'Version', sort: row => row.version, cell: row => row.version || '–' },
          { name: 'Last seen', sort: row => row.lastSeen, cell: row => ago(row.lastSeen) },
        ]} /></section>}
    </>}</Answer>
    <Answer of={graph} what="dependencies">{graph => graph.nodes.length > 0 && <FlowGraph graph={graph} title="Neighbours" />}</Answer>
  </>
}

export function Scores({ of }: { of: ServiceDetails['propagation'] }) {
  return <Table caption="Context by route" rows={of} keyOf={row => row.route} columns={[
    { name: 'Route', sort: row => row.route, cell: row => <code>{row.route}</code> },
    { name: 'Handed on', number: true, sort: row => row.forwarded, cell: row => count(row.forwarded) },
    { name: 'Dropped', number: true, sort: row => row.dropped, cell: row => count(row.dropped) },
    { name: 'Score', number: true, sort: row => row.score, cell: row => <span class={row.score < 1 ? 'rate bad' : 'rate'}>{percent(row.score)}</span> },
  ]} />
}

/** Only services have a page: callers without a name, topics and hosts outside have none. */
function Links({ title, of, known }: { title: string; of: string[]; known: Set<string> }) {
  return <section class="panel"><header class="panel-head"><h2>{title}</h2></header>
    {of.length ? <ul class="chips">{of.map(name => <li key={name}>{known.has(name) ? <a href={to('services', name)}>{name}</a> : name}</li>)}</ul> : <p class="soft pad">Nobody in this time.</p>}
  </section>
}
