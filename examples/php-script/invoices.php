<?php
// Adds VAT and gross amount to invoices, and tells whether the IBAN can be right.
// Reads CSV with a header on stdin, writes CSV with a header on stdout, one line per invoice.

declare(strict_types=1);

/** An amount such as "1234.50" in cents. */
function cents(string $text): int
{
    if (!preg_match('/^(\d{1,9})(?:\.(\d{2}))?$/', trim($text), $part)) {
        throw new InvalidArgumentException("not an amount: '$text'");
    }
    return 100 * (int) $part[1] + (int) ($part[2] ?? 0);
}

function euros(int $cents): string
{
    return sprintf('%d.%02d', intdiv($cents, 100), $cents % 100);
}

/** ISO 13616: country and check digits to the end, letters as numbers, remainder 1 modulo 97. */
function ibanIsPlausible(string $iban): bool
{
    if (!preg_match('/^[A-Z]{2}\d{2}[A-Z0-9]{10,30}$/', $iban)) {
        return false;
    }
    $remainder = 0;
    foreach (str_split(substr($iban, 4) . substr($iban, 0, 4)) as $character) {
        $value = ctype_digit($character) ? (int) $character : ord($character) - 55;
        $remainder = ($remainder * ($value > 9 ? 100 : 10) + $value) % 97;
    }
    return $remainder === 1;
}

$columns = fgetcsv(STDIN, null, ';', '"', '');
fputcsv(STDOUT, [...$columns, 'vat', 'gross', 'iban_ok'], ';', '"', '');

while (($fields = fgetcsv(STDIN, null, ';', '"', '')) !== false) {
    $row = array_combine($columns, $fields);
    try {
        $net = cents($row['net']);
        $vat = intdiv($net * (int) $row['vat_percent'] + 50, 100);
    } catch (InvalidArgumentException $error) {
        // A non-zero exit means: this batch failed. The message becomes the quarantine reason.
        fwrite(STDERR, "invoice {$row['number']}: {$error->getMessage()}\n");
        exit(1);
    }
    $row['iban'] = strtoupper(preg_replace('/\s+/', '', $row['iban']));
    $checked = ibanIsPlausible($row['iban']) ? 'yes' : 'no';
    fputcsv(STDOUT, [...array_values($row), euros($vat), euros($net + $vat), $checked], ';', '"', '');
}
