// What users do: every operation with its counts, and the four numbers of all of them.
import type { Operation } from '../api'
import { query } from '../api'
import { ago, count, latency, ms, percent } from '../format'
import { useFlows } from '../live'
import { Answer, Cards, Empty, Filters, Search, since, Start, Table, useAsk } from '../parts'
import { put, to } from '../route'

export function Operations({ params }: { params: URLSearchParams }) {
  const environment = params.get('environment') ?? ''
  const asked = useAsk<{ operations: Operation[] }>('operations' + query({ startTime: since(params), environment }), true)
  const search = params.get('q') ?? ''
  return <>
    <div class="page-head"><h1 tabIndex={-1}>Operations</h1><button type="button" onClick={asked.again}>Refresh</button></div>
    <Answer of={asked} what="operations">{({ operations }) => {
      const environments = [...new Set([environment, ...operations.map(operation => operation.environment)])].filter(Boolean).sort()
      const shown = operations.filter(operation => operation.name.toLowerCase().includes(search.toLowerCase()))
      const total = shown.reduce((sum, { count }) => sum + count, 0)
      const errors = shown.reduce((sum, { count, errorRate }) => sum + count * errorRate, 0)
      const together = shown.reduce((sum, { count, avgLatency }) => sum + count * avgLatency, 0)
      const estimated = shown.some(operation => operation.estimated)
      return <>
        <Filters params={params} of={[{ key: 'environment', label: 'Environment', all: 'All', values: environments }]}>
          <Search value={search} label="Find an operation" onInput={q => put({ q })} />
        </Filters>
        {operations.length === 0 ? <Start /> : <>
          <Cards of={[
            { name: 'Total requests', value: count(total), note: estimated ? 'in part from sampled spans' : 'every request counted' },
            { name: 'Success rate', value: total ? percent(1 - errors / total) : '–' },
            { name: 'Error rate', value: total ? percent(errors / total) : '–', note: `${count(Math.round(errors))} failed`, bad: total > 0 && errors / total >= 0.05 },
            { name: 'Average latency', value: total ? ms(together / total) : '–' },
          ]} />
          <UnderWay />
          {shown.length === 0 ? <Empty title="No operation has this in its name"><p>Clear the search, or choose another environment or time range.</p></Empty>
            : <Table caption="Operations" rows={shown} initial={1} keyOf={row => row.name + '\n' + row.environment}
              href={row => to('operations', row.name || '(unnamed)', row.environment ? { environment: row.environment } : {})}
              columns={[
                { name: 'Operation', sort: row => row.name, cell: row => row.name || '(unnamed)' },
                { name: 'Count', number: true, sort: row => row.count, cell: row => count(row.count) },
                { name: 'Error rate', number: true, sort: row => row.errorRate, cell: row => <Rate of={row.errorRate} /> },
                { name: 'Average', number: true, sort: row => row.avgLatency, cell: row => latency(row.avgLatency) },
                { name: 'p95', number: true, sort: row => row.p95Latency, cell: row => latency(row.p95Latency) },
                { name: 'p99', number: true, sort: row => row.p99Latency, cell: row => latency(row.p99Latency) },
                { name: 'Environment', sort: row => row.environment, cell: row => row.environment || '–' },
                { name: 'Last seen', sort: row => row.lastSeen, cell: row => ago(row.lastSeen) },
              ]} />}
        </>}
      </>
    }}</Answer>
  </>
}

export function Rate({ of }: { of: number }) {
  return <span class={of >= 0.05 ? 'rate bad' : 'rate'}>{of >= 0.05 && <span aria-hidden="true">▲ </span>}{percent(of)}</span>
}

/** Flows that have begun and not ended. */
export function UnderWay() {
  const flows = useFlows()
  return <section class="under-way" aria-label="Under way">
    <h2>Under way</h2>
    {flows.length === 0 ? <span class="soft">nothing</span>
      : flows.map(flow => <a key={flow.flowId} href={to('traces', flow.traceId)}>{flow.operationName || '(unnamed)'} <span class="soft">at {flow.currentService}</span></a>)}
  </section>
}
