// The Doctor: who loses the context, where, and what to do about it.
import type { Doctor } from '../api'
import { query } from '../api'
import { percent, plural } from '../format'
import { Answer, Cards, Empty, Filters, since, Start, useAsk, Verdicts } from '../parts'
import { to } from '../route'
import { Scores } from './services'

export function DoctorPage({ params }: { params: URLSearchParams }) {
  const environment = params.get('environment') ?? ''
  const asked = useAsk<Doctor>('doctor' + query({ startTime: since(params), environment }), true)
  return <>
    <div class="page-head"><h1 tabIndex={-1}>Doctor</h1><button type="button" onClick={asked.again}>Examine again</button></div>
    <p class="lead">Where traces break: the hop, why, and what mends it.</p>
    <Answer of={asked} what="the examination">{({ services, tracesExamined }) => {
      const environments = [...new Set([environment, ...services.map(row => row.environment)])].filter(Boolean).sort()
      const ill = services.filter(row => row.verdicts.length > 0)
      const well = services.filter(row => row.verdicts.length === 0)
      const scores = services.flatMap(row => (row.score === null ? [] : [row.score]))
      return <>
        <Filters params={params} of={[{ key: 'environment', label: 'Environment', all: 'All', values: environments }]} />
        {services.length === 0 && tracesExamined === 0 ? <Start /> : <>
          <Cards of={[
            { name: 'Services with findings', value: String(ill.length), bad: ill.length > 0 },
            { name: 'Without', value: String(well.length) },
            { name: 'Lowest score', value: scores.length ? percent(Math.min(...scores)) : '–', note: 'of requests whose calls carried the context' },
            { name: 'Traces examined', value: String(tracesExamined), note: 'the latest; counts by sidecars are of all' },
          ]} />
          {ill.length === 0 && <Empty title="Nothing to mend"><p>Every service that was heard of hands its context on.</p></Empty>}
          {ill.map(row => <section class="panel" key={row.name + '\n' + row.namespace}>
            <header class="panel-head"><h2><a href={to('services', row.name, { namespace: row.namespace || undefined })}>{row.name}</a></h2>
              <span class="soft">{row.score === null ? 'no score: its sidecar does not tell' : `score ${percent(row.score)}`}</span></header>
            <Verdicts of={row.verdicts} />
            {row.routes.length > 0 && <details><summary>{plural(row.routes.length, 'route')}</summary><Scores of={row.routes} /></details>}
          </section>)}
          {well.length > 0 && <section class="panel"><header class="panel-head"><h2>Without findings</h2></header>
            <ul class="chips">{well.map(row => <li key={row.name + row.namespace}><a href={to('services', row.name)}>{row.name}</a>{row.score !== null && <span class="soft"> {percent(row.score)}</span>}</li>)}</ul>
          </section>}
        </>}
      </>
    }}</Answer>
  </>
}
