// One operation: its numbers, where it goes, what fails, its latest flows.
import type { Graph, Operation, Stats, TraceInList } from '../api'
import { query } from '../api'
import { count, latency, percent } from '../format'
import { FlowGraph } from '../graph'
import { Answer, Cards, Filters, since, Table, useAsk } from '../parts'
import { to } from '../route'
import { Traces as List } from './traces'

export function OperationPage({ name, params }: { name: string; params: URLSearchParams }) {
  const environment = params.get('environment') ?? ''
  const filter = query({ startTime: since(params), environment })
  const path = 'operations/' + encodeURIComponent(name)
  const stats = useAsk<{ stats: Stats }>(path + '/stats' + filter, true)
  const graph = useAsk<{ graph: Graph }>(path + '/graph' + filter, true)
  const all = useAsk<{ operations: Operation[] }>('operations' + query({ startTime: since(params) }))
  const traces = useAsk<{ traces: TraceInList[] }>('traces' + query({ operation: name, startTime: since(params), environment, pageSize: 10 }), true)
  const environments = [...new Set([environment, ...(all.value?.operations ?? []).filter(row => row.name === name).map(row => row.environment)])].filter(Boolean)
  return <>
    <div class="page-head">
      <h1 tabIndex={-1}><a class="back" href={to('operations')}>Operations</a> {name}</h1>
      <a class="button" href={to('traces', '', { operation: name })}>All its traces</a>
    </div>
    <Filters params={params} of={[{ key: 'environment', label: 'Environment', all: 'All', values: environments }]} />
    <Answer of={stats} what="numbers">{({ stats }) => <Cards of={[
      { name: 'Total requests', value: count(stats.totalRequests), note: stats.estimated ? 'from sampled spans' : 'every request counted' },
      { name: 'Success rate', value: percent(stats.successCount / Math.max(1, stats.totalRequests)) },
      { name: 'Error rate', value: percent(stats.errorCount / Math.max(1, stats.totalRequests)), note: [`${count(stats.errorCount)} failed`, stats.retryCount ? `${count(stats.retryCount)} retries` : ''].filter(Boolean).join(', '), bad: stats.errorCount / Math.max(1, stats.totalRequests) >= 0.05 },
      { name: 'Average latency', value: latency(stats.avgLatency), note: `p50 ${latency(stats.p50Latency)}, p95 ${latency(stats.p95Latency)}, p99 ${latency(stats.p99Latency)}` },
    ]} />}</Answer>
    <Answer of={graph} what="graph">{({ graph }) => <FlowGraph graph={graph} title="Flow graph" />}</Answer>
    <div class="columns">
    {stats.value && stats.value.stats.errors.length > 0 && <section class="panel"><header class="panel-head"><h2>What failed</h2></header>
      <Table caption="Errors by type" rows={stats.value.stats.errors} keyOf={row => row.errorType} columns={[
        { name: 'Error', cell: row => <code>{row.errorType}</code> },
        { name: 'Count', number: true, sort: row => row.count, cell: row => count(row.count) },
      ]} /></section>}
    {stats.value && stats.value.stats.routes.length > 0 && <section class="panel"><header class="panel-head"><h2>Routes</h2></header>
      <Table caption="Routes" rows={stats.value.stats.routes} keyOf={row => row.service + '\n' + row.route} columns={[
        { name: 'Service', sort: row => row.service, cell: row => row.service },
        { name: 'Route', sort: row => row.route, cell: row => <code>{row.route}</code> },
        { name: 'Requests', number: true, sort: row => row.requestCount, cell: row => count(row.requestCount) },
        { name: 'Errors', number: true, sort: row => row.errorCount, cell: row => count(row.errorCount) },
        { name: 'Average', number: true, sort: row => row.avgLatency, cell: row => latency(row.avgLatency) },
        { name: 'p95', number: true, sort: row => row.p95Latency, cell: row => latency(row.p95Latency) },
      ]} /></section>}
    </div>
    <section class="panel"><header class="panel-head"><h2>Latest traces</h2></header>
      <Answer of={traces} what="traces">{({ traces }) => traces.length ? <List traces={traces} /> : <p class="soft pad">No trace of it is kept for this time: they may not have been sampled.</p>}</Answer>
    </section>
  </>
}
