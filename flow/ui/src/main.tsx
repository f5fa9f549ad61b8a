// The dashboard's frame: header, pages, help, keys for all of it. A saved trace opens as that one page and asks nobody.
import { render } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { allKeys, useKeys } from './keys'
import { connect, useConnection } from './live'
import { DoctorPage } from './pages/doctor'
import { OperationPage } from './pages/operation'
import { Operations } from './pages/operations'
import { ServicePage, ServicesPage } from './pages/services'
import { TracePage, View } from './pages/trace'
import { TracesPage } from './pages/traces'
import { Empty } from './parts'
import { follow, go, to, useRoute, type Route } from './route'
import { saved } from './save'
import { nextTheme, setTheme, theme, type Theme } from './theme'

const PAGES = [['operations', 'Operations', 'o'], ['traces', 'Traces', 'f'], ['services', 'Services', 's'], ['doctor', 'Doctor', 'd']] as const

function Page({ page, name, params }: Route) {
  if (page === 'operations') return name ? <OperationPage key={name} name={name} params={params} /> : <Operations params={params} />
  if (page === 'traces' || page === 'flows') return name ? <TracePage key={name} name={name} params={params} /> : <TracesPage params={params} />
  if (page === 'services') return name ? <ServicePage key={name} name={name} params={params} /> : <ServicesPage params={params} />
  if (page === 'doctor') return <DoctorPage params={params} />
  return <Empty title="No such page"><p><a href="/">Operations</a></p></Empty>
}

const TITLES: Record<string, string> = { operations: 'Operations', traces: 'Traces', flows: 'Traces', services: 'Services', doctor: 'Doctor' }
const THEMES: Record<Theme, string> = { system: 'System', light: 'Light', dark: 'Dark', contrast: 'High contrast' }

function ThemeButton() {
  const [now, set] = useState(theme)
  const change = () => { const next = nextTheme(now); setTheme(next); set(next) }
  useKeys([{ keys: 'T', does: 'Theme: system, light, dark, high contrast', run: change }])
  return <button type="button" class="quiet" onClick={change} aria-label={`Theme: ${THEMES[now]}. Change`}><span aria-hidden="true">◐</span> {THEMES[now]}</button>
}

function Connection() {
  const state = useConnection()
  const text = { connected: 'Live', connecting: 'Connecting', waiting: 'Not connected; trying again' }[state]
  return <span class={`connection ${state}`} role="status"><span aria-hidden="true">{state === 'connected' ? '●' : '○'}</span> {text}</span>
}

function Help({ open, close }: { open: boolean; close: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => {
    if (open) dialog.current?.showModal()
    else dialog.current?.close()
  }, [open])
  return <dialog ref={dialog} onClose={close} aria-labelledby="help-title">
    {open && <>
      <header><h2 id="help-title">Keys</h2><button type="button" aria-label="Close" onClick={close}>✕</button></header>
      {allKeys().filter(layer => layer.length > 0).map((layer, place) => <dl key={place} class="keys">{layer.map(({ keys, does }) =>
        <div key={keys}><dt>{keys.split(', ').map((key, place) => <span key={key}>{place > 0 && ' or '}<kbd>{key}</kbd></span>)}</dt><dd>{does}</dd></div>)}</dl>)}
      <dl class="keys"><div><dt><kbd>↑</kbd> <kbd>↓</kbd> <kbd>←</kbd> <kbd>→</kbd> <kbd>Enter</kbd></dt><dd>In the waterfall: move, close, open, details</dd></div></dl>
    </>}
  </dialog>
}

function App() {
  const route = useRoute()
  const [help, setHelp] = useState(false)
  useKeys([
    { keys: '?', does: 'These keys', run: () => setHelp(now => !now) },
    ...PAGES.map(([page, title, key]) => ({ keys: `g ${key}`, does: title, run: () => go(to(page)) })),
  ])
  useEffect(() => {
    document.title = [route.name, TITLES[route.page], 'Throughline'].filter(Boolean).join(' · ')
  }, [route.page, route.name])
  return <div onClick={follow}>
    <a class="skip" href="#main" onClick={event => { event.preventDefault(); document.querySelector<HTMLElement>('h1')?.focus() }}>To the content</a>
    <header class="top">
      <a class="brand" href={to('operations')}><svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true"><rect width="32" height="32" rx="7" /><path d="M6 11h9m3 0h8M6 16h4m3 0h13M6 21h12m3 0h5" /></svg>Throughline</a>
      <nav aria-label="Pages">{PAGES.map(([page, title]) => <a key={page} href={to(page)} aria-current={route.page === page || (page === 'traces' && route.page === 'flows') ? 'page' : undefined}>{title}</a>)}</nav>
      <Connection />
      <ThemeButton />
      <button type="button" class="quiet" onClick={() => setHelp(true)} aria-label="Keys">?</button>
    </header>
    <main id="main"><Page {...route} /></main>
    <Help open={help} close={() => setHelp(false)} />
  </div>
}

function Saved() {
  const [help, setHelp] = useState(false)
  useKeys([{ keys: '?', does: 'These keys', run: () => setHelp(now => !now) }])
  return <>
    <header class="top"><span class="brand">Throughline</span><span class="soft">a saved trace</span><ThemeButton /><button type="button" class="quiet" onClick={() => setHelp(true)} aria-label="Keys">?</button></header>
    <main id="main"><View trace={saved()!} params={new URLSearchParams()} /></main>
    <Help open={help} close={() => setHelp(false)} />
  </>
}

setTheme(theme())
const root = document.getElementById('app')!
root.textContent = ''
if (document.getElementById('saved-trace')) render(<Saved />, root)
else {
  connect()
  render(<App />, root)
}
