/**
 * The smallest thing that a BIOS boots.
 *
 * @module
 */

/** A boot sector of 512 bytes that writes `text` to the first serial port and halts. */
export function bootSector(text: string): Uint8Array<ArrayBuffer> {
  const code = [
    ...[0x31, 0xc0, 0x8e, 0xd8], //       xor ax, ax; mov ds, ax
    ...[0xbe, 0x15, 0x7c], //             mov si, text
    ...[0xba, 0xf8, 0x03], //             mov dx, 0x3f8
    ...[0xac, 0x84, 0xc0, 0x74, 0x03], // next: lodsb; test al, al; jz halt
    ...[0xee, 0xeb, 0xf8], //             out dx, al; jmp next
    ...[0xf4, 0xeb, 0xfd], //             halt: hlt; jmp halt
  ]; //                                   text:
  const sector = new Uint8Array(512);
  sector.set(code);
  sector.set(new TextEncoder().encode(text), code.length);
  sector.set([0x55, 0xaa], 510);
  return sector;
}
