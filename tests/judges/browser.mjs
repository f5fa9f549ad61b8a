// A real browser that does what a scenario says: `node browser.mjs <playwright-core> <chromium> <steps as JSON>`.
// Prints one line of JSON: what the steps gave, and every error that the page or the browser told of.
import { createRequire } from 'node:module'

const [library, executablePath, text] = process.argv.slice(2)
const { chromium } = createRequire(import.meta.url)(library)
const steps = JSON.parse(text)
const errors = []
const values = []
const args = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--no-first-run',
]
const browser = await chromium.launch({ executablePath, headless: true, args })
try {
  const page = await (await browser.newContext()).newPage()
  page.setDefaultTimeout(20_000)
  page.on('console', message => {
    if (['error', 'warning'].includes(message.type())) errors.push(message.text() + ' ' + message.location().url)
  })
  page.on('pageerror', error => errors.push(String(error)))
  for (const [verb, what, value] of steps) {
    if (verb === 'goto') await page.goto(what)
    else if (verb === 'click') await page.click(what)
    else if (verb === 'fill') await page.fill(what, value)
    else if (verb === 'press') await page.press(what, value)
    else if (verb === 'text') await page.locator(what).getByText(value, { exact: true }).waitFor()
    else if (verb === 'at') await page.waitForURL(what)
    else if (verb === 'value') values.push(await page.evaluate(what))
    else if (verb === 'close') await page.close({ runBeforeUnload: true })
    else throw new Error(`no such step: ${verb}`)
  }
} catch (error) {
  errors.push(`the steps broke off: ${error}`)
} finally {
  await browser.close()
}
console.log(JSON.stringify({ done: { values, errors } }))
