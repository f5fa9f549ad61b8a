// The whole path: a click in the shop's page, through six services and a queue, to the waterfall on the dashboard.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { after, before, test } from 'node:test'
import { launch, workspace } from './support.mjs'

const PATIENCE = 30_000
let browser, demo, shop, dashboard
const said = []

before(async () => {
  const binary = workspace('target/quick/throughline-demo')
  if (!existsSync(binary)) throw new Error(`no demo at ${binary}: cargo build --profile quick -p throughline-demo`)
  demo = spawn(binary, ['--broker', 'own', '--color', 'never', '--port', '0'], { stdio: ['ignore', 'pipe', 'pipe'] })
  const open = new Promise((found, failed) => {
    for (const stream of [demo.stdout, demo.stderr]) {
      createInterface({ input: stream }).on('line', line => {
        said.push(line)
        dashboard ??= /Look at it in a browser: (http:\S+?)\/$/.exec(line)?.[1]
        shop ??= /page with buttons: (http:\S+?)\/$/.exec(line)?.[1]
        if (shop && dashboard) found()
      })
    }
    demo.on('exit', code => failed(new Error(`the demo ended with ${code}: ${said.join('\n')}`)))
  })
  ;[browser] = await Promise.all([launch(), open])
})
after(async () => {
  await browser?.close()
  if (demo && demo.exitCode === null) {
    const ended = new Promise(done => demo.once('exit', done))
    demo.kill('SIGTERM')
    await ended
  }
})

async function asked(path, wanted) {
  const end = Date.now() + PATIENCE
  for (;;) {
    const answer = await (await fetch(`${dashboard}/api/v1/${path}`)).json()
    if (wanted(answer)) return answer
    if (Date.now() > end) throw new Error(`${path} did not come to be: ${JSON.stringify(answer).slice(0, 800)}`)
    await new Promise(done => setTimeout(done, 100))
  }
}

test('a click in the shop is one trace from the button to the parcel, on the dashboard', async () => {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } })
  const complaints = []
  try {
    const page = await context.newPage()
    page.setDefaultTimeout(PATIENCE)
    page.on('pageerror', error => complaints.push(String(error)))
    page.on('console', message => { if (message.type() === 'error') complaints.push(message.text()) })
    await page.goto(shop)
    await page.getByRole('button', { name: 'Check out six services' }).click()
    await page.locator('#result .good').waitFor()
    const clicked = (await page.locator('#result dd').last().innerText()).trim()
    assert.match(clicked, /^[0-9a-f]{32}$/)
    // The page's own span leaves a moment later, and the parcel is packed behind the queue.
    await asked(`traces/${clicked}`, answer => ['shop-ui', 'shipping', 'warehouse'].every(name => answer.spans?.some(span => span.service.name === name)))
    await page.goto(`${dashboard}/traces?operation=checkout`)
    await page.getByRole('table').locator(`a[href^="/traces/${clicked}"]`).click()
    await page.getByRole('heading', { name: 'checkout' }).waitFor()
    const rows = page.locator('.row')
    await page.waitForFunction(() => document.querySelectorAll('.row').length > 10)
    assert.match(await rows.first().innerText(), /shop-ui/)
    const services = (await page.locator('.row .service').allInnerTexts()).map(text => text.trim())
    for (const name of ['web', 'orders', 'stock', 'payments', 'warehouse', 'shipping']) assert.ok(services.includes(name), `${name} in ${services}`)
    // The page is a caller in the graph of the operation, too.
    await asked('operations/checkout/graph', answer => answer.graph?.edges.some(edge => edge.from === 'shop-ui' && edge.to === 'web'))
    await page.goto(`${dashboard}/operations/checkout`)
    await page.locator('.graph .node').filter({ hasText: 'shop-ui' }).waitFor()
    assert.deepEqual(complaints, [])
  } finally {
    await context.close()
  }
})

test('what drops the context is named by the Doctor, and the first look is not empty', async () => {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } })
  try {
    const page = await context.newPage()
    page.setDefaultTimeout(PATIENCE)
    await page.goto(dashboard)
    await page.waitForFunction(() => document.querySelectorAll('tbody tr').length >= 5)
    await page.goto(shop)
    await page.getByRole('button', { name: 'Recommend something' }).click()
    await page.locator('#result .good').waitFor()
    if (process.env.THROUGHLINE_SCREENSHOTS) {
      await page.setViewportSize({ width: 1000, height: 640 })
      await page.screenshot({ path: workspace(`${process.env.THROUGHLINE_SCREENSHOTS}/dashboard-shop.png`) })
    }
    await asked('doctor', answer => answer.services?.some(row => row.name === 'stock' && row.verdicts.some(said => said.verdict === 'app_dropped')))
    await page.goto(`${dashboard}/doctor`)
    await page.getByRole('heading', { name: 'stock' }).waitFor()
    await page.getByText('The application dropped the context').first().waitFor()
  } finally {
    await context.close()
  }
})
