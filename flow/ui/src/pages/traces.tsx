// Flows, one a row, with the five filters.
import type { Operation, ServiceInList, TraceInList } from '../api'
import { query } from '../api'
import { count, moment, ns, ofNanos, plural } from '../format'
import { Answer, Empty, Filters, OutcomeMark, since, Start, Table, useAsk } from '../parts'
import { go, put, to } from '../route'
import { UnderWay } from './operations'

const SIZE = 50

export function TracesPage({ params }: { params: URLSearchParams }) {
  const get = (key: string) => params.get(key) ?? ''
  const startTime = since(params)
  const page = Math.max(1, Number(get('page')) || 1)
  const filters = { operation: get('operation'), environment: get('environment'), service: get('service'), status: get('status') }
  const asked = useAsk<{ traces: TraceInList[]; total: number; totalIsBound: boolean }>('traces' + query({ ...filters, startTime, page, pageSize: SIZE }), page === 1)
  const operations = useAsk<{ operations: Operation[] }>('operations' + query({ startTime }))
  const services = useAsk<{ services: ServiceInList[] }>('services' + query({ startTime }))
  const names = (list: (string | undefined)[]) => [...new Set(list)].filter((name): name is string => !!name).sort()
  const filtered = Object.values(filters).some(Boolean)
  return <>
    <div class="page-head"><h1 tabIndex={-1}>Traces</h1>
      <form class="inline" onSubmit={event => {
        event.preventDefault()
        const id = new FormData(event.currentTarget).get('id')
        if (id) go(to('traces', String(id).trim()))
      }}><label>Trace id <input name="id" type="search" autocomplete="off" spellcheck={false} placeholder="Paste one, then Enter" /></label></form>
    </div>
    <Filters params={params} of={[
      { key: 'operation', label: 'Operation', all: 'All', values: names(operations.value?.operations.map(row => row.name) ?? []) },
      { key: 'environment', label: 'Environment', all: 'All', values: names(operations.value?.operations.map(row => row.environment) ?? []) },
      { key: 'service', label: 'Service', all: 'All', values: names(services.value?.services.map(row => row.name) ?? []) },
      { key: 'status', label: 'Status', all: 'All', values: ['success', 'error', 'timeout'] },
    ]} />
    <UnderWay />
    <Answer of={asked} what="traces">{({ traces, total, totalIsBound }) => traces.length === 0
      ? filtered || page > 1
        ? <Empty title="No trace fits these filters"><p><button type="button" onClick={() => put({ operation: undefined, environment: undefined, service: undefined, status: undefined, page: undefined })}>Clear the filters</button></p></Empty>
        : <Start />
      : <>
        <Traces traces={traces} />
        <nav class="pages" aria-label="Pages of the list">
          <button type="button" disabled={page === 1} onClick={() => put({ page: page > 2 ? String(page - 1) : undefined }, false)}>Newer</button>
          <span>{count((page - 1) * SIZE + 1)}–{count((page - 1) * SIZE + traces.length)} of {totalIsBound && 'at least '}{plural(total, 'trace')}</span>
          <button type="button" disabled={page * SIZE >= total && !(totalIsBound && traces.length === SIZE)} onClick={() => put({ page: String(page + 1) }, false)}>Older</button>
        </nav>
      </>}</Answer>
  </>
}

export function Traces({ traces }: { traces: TraceInList[] }) {
  const longest = Math.max(1, ...traces.map(trace => trace.duration))
  return <Table caption="Traces" rows={traces} keyOf={row => row.traceId} href={row => to('traces', row.traceId)} columns={[
    { name: 'Started', sort: row => row.startTime, cell: row => moment(ofNanos(row.startTime)) },
    { name: 'Operation', sort: row => row.operationName, cell: row => <b>{row.operationName || '(unnamed)'}</b> },
    { name: 'Status', sort: row => row.status, cell: row => <OutcomeMark of={row.status} /> },
    { name: 'Duration', number: true, sort: row => row.duration, cell: row => <span class="duration"><meter aria-hidden="true" min={0} max={longest} value={row.duration} />{ns(row.duration)}</span> },
    { name: 'Begins at', sort: row => row.rootService, cell: row => <>{row.rootService} <span class="soft">{row.rootName}</span></> },
    { name: 'Spans', number: true, sort: row => row.spanCount, cell: row => count(row.spanCount) },
    { name: 'Errors', number: true, sort: row => row.errorCount, cell: row => (row.errorCount ? <span class="rate bad">{count(row.errorCount)}</span> : '0') },
    { name: 'Services', number: true, sort: row => row.serviceCount, cell: row => <span title={row.services.join(', ')}>{row.serviceCount}</span> },
    { name: 'Environment', sort: row => row.environment, cell: row => row.environment || '–' },
  ]} />
}
