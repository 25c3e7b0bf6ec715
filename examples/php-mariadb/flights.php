<?php
// Adds the name, the place and the time zone of the destination to each flight, from the table
// `reference.airports` in the MariaDB server of the machine that this runs on.
// Reads CSV with a header on stdin, writes CSV with a header on stdout, one line per flight.

declare(strict_types=1);

// No password: the server lets a local user in as the database user of the same name.
$user = posix_getpwuid(posix_geteuid())['name'];
$socket = getenv('MYSQL_UNIX_PORT') ?: '/run/mysqld/mysqld.sock';
$database = new PDO("mysql:unix_socket=$socket;dbname=reference;charset=utf8mb4", $user, null, [
    PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION,
]);
$airports = $database->prepare('SELECT name, lat, lon, time_zone FROM airports WHERE faa = ?');

/** What the table says of an airport; four empty fields where it does not know it. */
function airport(PDOStatement $airports, string $faa): array
{
    static $known = [];
    if (!isset($known[$faa])) {
        $airports->execute([$faa]);
        $known[$faa] = $airports->fetch(PDO::FETCH_NUM) ?: ['', '', '', ''];
        $airports->closeCursor();
    }
    return $known[$faa];
}

$columns = fgetcsv(STDIN, null, ',', '"', '');
$dest = array_search('dest', $columns, true);
fputcsv(STDOUT, [...$columns, 'dest_name', 'dest_lat', 'dest_lon', 'dest_zone'], ',', '"', '');

while (($fields = fgetcsv(STDIN, null, ',', '"', '')) !== false) {
    fputcsv(STDOUT, [...$fields, ...airport($airports, $fields[$dest])], ',', '"', '');
}
